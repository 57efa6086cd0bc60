// Where the keys and values of an accepted path lie before and after they are gathered.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"
#include "sdengine/move_plan.h"

namespace sdengine {

struct KvCompactArgs {
  void* kv_cache;               // [L, P, 2, H_kv, block_size, D]
  int64_t element_bytes;        // 2 or 4
  const int32_t* block_tables;  // [B, P_max]
  int64_t max_blocks;           // P_max
  MovePlanView moves;           // read
  const int32_t* num_seqs;      // [1]
  int64_t num_layers;
  int64_t num_blocks;
  int64_t num_kv_heads;
  int64_t block_size;
  int64_t head_dim;
};

// Which vector of head_dim elements a token is, counted inside one (layer, k or v, head) plane.
// Divides 32 bits: GPUs take some hundred instructions for 64.
SDE_HD inline int64_t plane_row(const KvCompactArgs& args, int64_t sequence, int32_t index) {
  const uint32_t at = static_cast<uint32_t>(index);
  const uint32_t block_size = static_cast<uint32_t>(args.block_size);
  const int64_t block = args.block_tables[sequence * args.max_blocks + at / block_size];
  return block * 2 * args.num_kv_heads * args.block_size + at % block_size;
}

}  // namespace sdengine
