// What the library says about itself.
#include "cuda/launch.cuh"
#include "sdengine/begin_step.h"
#include "sdengine/build_rows.h"
#include "sdengine/commit_plan.h"
#include "sdengine/gather_pending.h"
#include "sdengine/kv_compact.h"
#include "sdengine/ngram_match.h"
#include "sdengine/timestamp.h"
#include "sdengine/tree_expand.h"
#include "sdengine/tree_select.h"
#include "sdengine/tree_verify.h"

SDENGINE_CUDA_API const char* sdengine_cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

namespace {

struct NamedSize {
  const char* op;
  int64_t bytes;
};

constexpr NamedSize kSizes[] = {
    {"begin_step", sizeof(sdengine::BeginStepArgs)},
    {"build_rows", sizeof(sdengine::BuildRowsArgs)},
    {"commit_plan", sizeof(sdengine::CommitPlanArgs)},
    {"gather_pending", sizeof(sdengine::GatherPendingArgs)},
    {"kv_compact", sizeof(sdengine::KvCompactArgs)},
    {"ngram_match", sizeof(sdengine::NgramMatchArgs)},
    {"timestamp", sizeof(sdengine::TimestampArgs)},
    {"tree_expand", sizeof(sdengine::TreeExpandArgs)},
    {"tree_select", sizeof(sdengine::TreeSelectArgs)},
    {"tree_verify", sizeof(sdengine::TreeVerifyArgs)},
};

}  // namespace

// Size of an op's argument struct, by which a caller sees that the library was built from other
// sources; -1 for an unknown name.
SDENGINE_CUDA_API int64_t sdengine_cuda_sizeof(const char* op) {
  for (const NamedSize& size : kSizes) {
    const char* a = op;
    const char* b = size.op;
    while (*a != '\0' && *a == *b) ++a, ++b;
    if (*a == *b) return size.bytes;
  }
  return -1;
}
