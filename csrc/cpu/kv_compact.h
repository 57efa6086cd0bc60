// kv_compact: moves the keys and values of an accepted path to the front of its tree region, in
// every layer.
#pragma once

#include "cpu/worker.h"

namespace sdengine {

struct KvCompactArgs {
  void* kv_cache;                 // [L, P, 2, H_kv, block_size, D]
  int64_t element_bytes;          // 2 or 4
  const int32_t* block_tables;    // [B, P_max]
  int64_t max_blocks;             // P_max
  const int32_t* move_src;        // [B, M] logical indices, ascending
  int64_t max_moves;              // M
  const int32_t* move_dst_start;  // [B] logical index of the first destination
  const int32_t* num_moves;       // [B]
  const int32_t* num_seqs;        // [1]
  int64_t num_layers;
  int64_t num_blocks;
  int64_t num_kv_heads;
  int64_t block_size;
  int64_t head_dim;
};

void kv_compact(const KvCompactArgs& args, Worker& worker);

}  // namespace sdengine
