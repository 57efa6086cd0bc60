// gather_pending: packs every sequence's pending tokens. Contract: kernels/gather_pending.py.
//
// One block per sequence. It adds up for itself what the sequences before it take, so nothing has
// to be exchanged between blocks.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/gather_pending.h"

namespace sdengine {
namespace {

constexpr int32_t kGatherThreads = 128;

__device__ int32_t num_pending(const GatherPendingArgs& args, int64_t b) {
  return args.pending_lens[b] > 0 ? args.pending_lens[b] : 0;
}

__device__ int32_t within(int32_t count, int32_t capacity) {
  return count < capacity ? count : capacity;
}

__global__ void gather_pending_kernel(GatherPendingArgs args) {
  SharedLayout layout(shared_memory());
  const Block block(layout.take<uint32_t>(kMaxWarps));
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  if (b == 0 && block.is_leader()) args.cu_pending[0] = 0;
  if (b >= *args.num_seqs) return;
  int32_t earlier = 0;
  for (int32_t i = block.rank(); i < b; i += block.size()) earlier += num_pending(args, i);
  earlier = block.sum(earlier);
  const int32_t first = within(earlier, args.capacity);
  const int32_t last = within(earlier + num_pending(args, b), args.capacity);
  const int32_t* tokens = args.history + b * args.max_history + args.computed_lens[b];
  for (int32_t at = first + block.rank(); at < last; at += block.size())
    args.pending_tokens[at] = tokens[at - first];
  if (block.is_leader()) args.cu_pending[b + 1] = last;
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_gather_pending(const sdengine::GatherPendingArgs* args,
                                                   int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(batch_size), kGatherThreads, kMaxWarps * sizeof(uint32_t)};
  return launch(gather_pending_kernel, shape, stream, *args);
}
