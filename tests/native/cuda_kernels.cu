// The CUDA library as one translation unit: nvcc compiles it for devices, g++ against the
// cuda_runtime.h of cuda_on_threads for the CPU's threads.
#include "cuda/begin_step.cu"
#include "cuda/build_rows.cu"
#include "cuda/commit_plan.cu"
#include "cuda/gather_pending.cu"
#include "cuda/kv_compact.cu"
#include "cuda/library.cu"
#include "cuda/ngram_match.cu"
#include "cuda/timestamp.cu"
#include "cuda/tree_expand.cu"
#include "cuda/tree_select.cu"
#include "cuda/tree_verify.cu"
