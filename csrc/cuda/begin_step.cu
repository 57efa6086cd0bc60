// begin_step: what every sequence does in this step. Contract: kernels/begin_step.py.
//
// One block per sequence. It adds up for itself what the drafts of the sequences before it are
// missing, whether enough go on and how far the last of its group is from its end, so nothing has
// to be exchanged between blocks.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/begin_step.h"

namespace sdengine {
namespace {

constexpr int32_t kBeginThreads = 64;

__global__ void begin_step_kernel(BeginStepArgs args) {
  SharedLayout layout(shared_memory());
  const Block block(layout.take<uint32_t>(kMaxWarps));
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  if (b >= *args.num_seqs) return;
  bool go_on = true;
  if (*args.min_running > 1) {
    int32_t num_running = 0;
    for (int32_t i = block.rank(); i < *args.num_seqs; i += block.size())
      num_running += begin::num_pending(args, i) > 0;
    go_on = begin::are_enough(args, block.sum(num_running));
  }
  int32_t earlier = 0;
  if (args.draft_computed_lens != nullptr) {
    for (int32_t i = block.rank(); i < b; i += block.size())
      earlier += begin::num_missing(args, i, begin::num_pending(args, i));
    earlier = block.sum(earlier);
  }
  int32_t most_left = 0;
  if (begin::is_weighing(args)) {
    for (int32_t i = block.rank(); i < *args.num_seqs; i += block.size()) {
      const int32_t left = begin::left_in_group(args, b, i, begin::num_pending(args, i));
      most_left = left > most_left ? left : most_left;
    }
    most_left = static_cast<int32_t>(~block.least(~static_cast<uint32_t>(most_left)));
  }
  const int32_t pending = go_on ? begin::num_pending(args, b) : 0;
  if (block.is_leader()) begin_sequence(args, b, pending, earlier, most_left);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_begin_step(const sdengine::BeginStepArgs* args,
                                               int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(batch_size), kBeginThreads, kMaxWarps * sizeof(uint32_t)};
  return launch(begin_step_kernel, shape, stream, *args);
}
