// kv_compact: moves the keys and values of an accepted path to the front of its tree region, in
// every layer. Contract: kernels/kv_compact.py.
//
// One block per (layer, sequence); a thread owns one unit of one (k or v, head) plane and carries
// it through all moves, so no two threads ever touch the same bytes. Destinations do not pass their
// sources and both ascend: reading a batch of moves before writing it, batch after batch, is safe
// in place, and keeps kMovesInFlight loads in flight.
#include "cuda/launch.cuh"
#include "sdengine/kv_compact.h"

namespace sdengine {
namespace {

constexpr int32_t kCompactThreads = 256;
constexpr int32_t kMovesInFlight = 4;

// Moves [first, first + count) of one unit; `cache` is the unit's place in plane 0, token 0.
template <class Unit>
__device__ void move_batch(const KvCompactArgs& args, Unit* cache, int64_t b, int32_t first,
                           int32_t count) {
  const int64_t units = args.head_dim * args.element_bytes / static_cast<int64_t>(sizeof(Unit));
  const int32_t* sources = args.move_src + b * args.max_moves + first;
  const int64_t target = int64_t{args.move_dst_start[b]} + first;
  Unit held[kMovesInFlight];
#pragma unroll
  for (int32_t k = 0; k < kMovesInFlight; ++k) {
    if (k < count) held[k] = cache[plane_row(args, b, sources[k]) * units];
  }
#pragma unroll
  for (int32_t k = 0; k < kMovesInFlight; ++k) {
    if (k < count) cache[plane_row(args, b, target + k) * units] = held[k];
  }
}

template <class Unit>
__global__ void kv_compact_kernel(KvCompactArgs args) {
  const int64_t b = blockIdx.x, layer = blockIdx.y;
  if (b >= *args.num_seqs) return;
  const int32_t num_moves = args.num_moves[b];
  const int64_t units = args.head_dim * args.element_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t planes = 2 * args.num_kv_heads;
  Unit* cache = static_cast<Unit*>(args.kv_cache) +
                layer * args.num_blocks * planes * args.block_size * units;
  for (int64_t i = threadIdx.x; i < planes * units; i += blockDim.x) {
    Unit* own = cache + i / units * args.block_size * units + i % units;
    for (int32_t first = 0; first < num_moves; first += kMovesInFlight) {
      const int32_t left = num_moves - first;
      move_batch(args, own, b, first, left < kMovesInFlight ? left : kMovesInFlight);
    }
  }
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_kv_compact(const sdengine::KvCompactArgs* args,
                                               int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(batch_size, static_cast<unsigned>(args->num_layers)),
                             kCompactThreads};
  const int64_t bytes = args->head_dim * args->element_bytes;
  const uint64_t alignment =
      static_cast<uint64_t>(bytes) | reinterpret_cast<uintptr_t>(args->kv_cache);
  if (alignment % sizeof(uint4) == 0) return launch(kv_compact_kernel<uint4>, shape, stream, *args);
  if (alignment % sizeof(uint32_t) == 0)
    return launch(kv_compact_kernel<uint32_t>, shape, stream, *args);
  return launch(kv_compact_kernel<uint16_t>, shape, stream, *args);
}
