// commit_plan: bookkeeping after the walk. Contract: kernels/commit_plan.py.
//
// One sequence per warp, run by its first thread: some ten tokens each, too few to share, and a
// block of its own gives every sequence its own multiprocessor's latency.
#include "cuda/launch.cuh"
#include "sdengine/commit_plan.h"

namespace sdengine {
namespace {

constexpr int32_t kCommitThreads = 32;

__global__ void commit_plan_kernel(CommitPlanArgs args) {
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  if (threadIdx.x == 0 && b < *args.num_seqs) commit_sequence(args, b);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_commit_plan(const sdengine::CommitPlanArgs* args,
                                                int32_t batch_size, void* stream) {
  using namespace sdengine;
  return launch(commit_plan_kernel, {dim3(batch_size), kCommitThreads}, stream, *args);
}
