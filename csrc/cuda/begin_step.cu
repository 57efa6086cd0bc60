// begin_step: what every sequence does in this step. Contract: kernels/begin_step.py.
//
// One block per sequence. It adds up for itself what the drafts of the sequences before it are
// missing, how many go on and what its group has left, so nothing has to be exchanged between
// blocks.
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
  // Where nobody asks for them, sums over the batch are not worth their barriers.
  const bool counts = *args.min_running > 1, follows = args.draft_computed_lens != nullptr;
  const bool weighs = begin::is_weighing(args);
  int32_t num_running = 0, earlier = 0;
  begin::GroupLeft group;
  for (int32_t i = block.rank(); (counts || follows || weighs) && i < *args.num_seqs;
       i += block.size()) {
    const int32_t pending = begin::num_pending(args, i);
    num_running += pending > 0;
    if (i < b) earlier += begin::num_missing(args, i, pending);
    if (weighs) group.add(begin::left_in_group(args, b, i, pending));
  }
  const bool go_on = !counts || begin::are_enough(args, block.sum(num_running));
  if (follows) earlier = block.sum(earlier);
  if (weighs) group = {block.sum(group.size), block.sum_wide(group.squares)};
  const int32_t pending = go_on ? begin::num_pending(args, b) : 0;
  if (block.is_leader()) begin_sequence(args, b, pending, earlier, group);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_begin_step(const sdengine::BeginStepArgs* args,
                                               int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(batch_size), kBeginThreads, kMaxWarps * sizeof(uint32_t)};
  return launch(begin_step_kernel, shape, stream, *args);
}
