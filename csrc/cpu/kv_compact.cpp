#include "cpu/kv_compact.h"

#include <algorithm>
#include <cstring>

namespace sdengine {
namespace {

// Below this much to copy, a second worker costs more than it saves.
constexpr int64_t kBytesPerWorker = 32768;

// All planes of one layer. Destinations never pass their sources, so copying in order is safe in
// place.
void compact_layer(const KvCompactArgs& args, int64_t sequence, int64_t layer) {
  const int64_t planes = 2 * args.num_kv_heads;
  const int64_t plane_size = args.block_size * args.head_dim;
  const int64_t bytes = args.head_dim * args.element_bytes;
  char* cache = static_cast<char*>(args.kv_cache) +
                layer * args.num_blocks * planes * plane_size * args.element_bytes;
  for (int32_t k = 0; k < args.moves.num_moves[sequence]; ++k) {
    const int32_t source = args.moves.source[sequence * args.moves.capacity + k];
    const int32_t target = args.moves.dst_start[sequence] + k;
    if (source == target) continue;
    const char* from = cache + plane_row(args, sequence, source) * bytes;
    char* to = cache + plane_row(args, sequence, target) * bytes;
    for (int64_t p = 0; p < planes; ++p) {
      std::memcpy(to + p * plane_size * args.element_bytes,
                  from + p * plane_size * args.element_bytes, bytes);
    }
  }
}

}  // namespace

void kv_compact(const KvCompactArgs& args, Worker& worker) {
  const int64_t layer_bytes = 2 * args.num_kv_heads * args.head_dim * args.element_bytes;
  int64_t moves = 0;
  for (int64_t b = 0; b < *args.num_seqs; ++b) moves += args.moves.num_moves[b];
  const int64_t useful = moves * args.num_layers * layer_bytes / kBytesPerWorker;
  const int64_t count = std::clamp<int64_t>(useful, 1, worker.count);
  if (worker.index >= count) return;
  const int64_t first = args.num_layers * worker.index / count;
  const int64_t last = args.num_layers * (worker.index + 1) / count;
  for (int64_t b = 0; b < *args.num_seqs; ++b) {
    if (args.moves.num_moves[b] == 0) continue;
    for (int64_t layer = first; layer < last; ++layer) compact_layer(args, b, layer);
  }
}

}  // namespace sdengine
