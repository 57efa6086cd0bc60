// The C face of the CUDA library, as a C++ caller sees it.
#pragma once

#include "sdengine/begin_step.h"
#include "sdengine/build_rows.h"
#include "sdengine/commit_plan.h"
#include "sdengine/gather_pending.h"
#include "sdengine/kv_compact.h"
#include "sdengine/ngram_match.h"
#include "sdengine/tree_expand.h"
#include "sdengine/tree_select.h"
#include "sdengine/tree_verify.h"

extern "C" {
int sdengine_cuda_begin_step(const sdengine::BeginStepArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_build_rows(const sdengine::BuildRowsArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_commit_plan(const sdengine::CommitPlanArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_gather_pending(const sdengine::GatherPendingArgs*, int32_t batch_size,
                                 void* stream);
int sdengine_cuda_kv_compact(const sdengine::KvCompactArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_ngram_match(const sdengine::NgramMatchArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_tree_expand(const sdengine::TreeExpandArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_tree_select(const sdengine::TreeSelectArgs*, int32_t batch_size, void* stream);
int sdengine_cuda_tree_verify(const sdengine::TreeVerifyArgs*, int32_t batch_size, void* stream);
}
