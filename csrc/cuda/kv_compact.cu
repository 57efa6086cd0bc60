// kv_compact: moves the keys and values of an accepted path to the front of its tree region, in
// every layer. Contract: kernels/kv_compact.py.
//
// One block per (layer, sequence). Its first threads look up where the moves begin and end, one
// each; then a thread owns one unit of one (k or v, head) plane and carries it through all moves,
// so no two threads ever touch the same bytes. Destinations do not pass their sources and both
// ascend: reading a batch of moves before writing it, batch after batch, is safe in place, and
// keeps kMovesInFlight loads in flight. What lies in its place already, as first children do, is
// not touched.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/kv_compact.h"

namespace sdengine {
namespace {

constexpr int32_t kCompactThreads = 256;
constexpr int32_t kMovesInFlight = 4;

// Where moves begin and end, in units from the layer's first vector. Found once a block: with a
// look-up and its divisions in every thread, those took longer than the copies (estimated: 7 us of
// instructions for 32 sequences and 32 layers).
struct Moves {
  SDE_HD explicit Moves(unsigned char* base) : layout(base) {
    sources = layout.take<int64_t>(kCompactThreads);
    targets = layout.take<int64_t>(kCompactThreads);
  }
  SharedLayout layout;
  int64_t* sources;
  int64_t* targets;
};

// Carries a unit through `count` moves; `own` is its place in the layer's first vector.
template <class Unit>
__device__ void carry(const Moves& moves, Unit* own, int32_t count) {
  for (int32_t first = 0; first < count; first += kMovesInFlight) {
    Unit held[kMovesInFlight];
    bool is_moving[kMovesInFlight];
#pragma unroll
    for (int32_t k = 0; k < kMovesInFlight; ++k) {
      is_moving[k] = first + k < count && moves.sources[first + k] != moves.targets[first + k];
      if (is_moving[k]) held[k] = own[moves.sources[first + k]];
    }
#pragma unroll
    for (int32_t k = 0; k < kMovesInFlight; ++k)
      if (is_moving[k]) own[moves.targets[first + k]] = held[k];
  }
}

template <class Unit>
__global__ void kv_compact_kernel(KvCompactArgs args) {
  const Moves moves(shared_memory());
  const int64_t b = blockIdx.x, layer = blockIdx.y;
  const int32_t rank = static_cast<int32_t>(threadIdx.x), size = static_cast<int32_t>(blockDim.x);
  const int32_t num_moves = b < *args.num_seqs ? args.moves.num_moves[b] : 0;
  const int32_t units =
      static_cast<int32_t>(args.head_dim * args.element_bytes / static_cast<int64_t>(sizeof(Unit)));
  const int32_t planes = static_cast<int32_t>(2 * args.num_kv_heads);
  const int64_t plane_units = args.block_size * units;
  Unit* cache = static_cast<Unit*>(args.kv_cache) + layer * args.num_blocks * planes * plane_units;
  for (int32_t first = 0; first < num_moves; first += size) {
    const int32_t k = first + rank, left = num_moves - first;
    if (k < num_moves) {
      moves.sources[rank] =
          plane_row(args, b, args.moves.source[b * args.moves.capacity + k]) * units;
      moves.targets[rank] = plane_row(args, b, args.moves.dst_start[b] + k) * units;
    }
    __syncthreads();
    for (int32_t i = rank; i < planes * units; i += size)
      carry(moves, cache + i / units * plane_units + i % units, left < size ? left : size);
    __syncthreads();
  }
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_kv_compact(const sdengine::KvCompactArgs* args,
                                               int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(batch_size, static_cast<unsigned>(args->num_layers)),
                             kCompactThreads, Moves(nullptr).layout.bytes()};
  const int64_t bytes = args->head_dim * args->element_bytes;
  const uint64_t alignment =
      static_cast<uint64_t>(bytes) | reinterpret_cast<uintptr_t>(args->kv_cache);
  if (alignment % sizeof(uint4) == 0) return launch(kv_compact_kernel<uint4>, shape, stream, *args);
  if (alignment % sizeof(uint32_t) == 0)
    return launch(kv_compact_kernel<uint32_t>, shape, stream, *args);
  return launch(kv_compact_kernel<uint16_t>, shape, stream, *args);
}
