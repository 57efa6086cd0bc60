// rope_kv_append: optional head norm, rotation of q and k, k and v into the cache.
#pragma once

#include "cpu/number_format.h"
#include "cpu/worker.h"

namespace sdengine {

struct RopeKvAppendArgs {
  float* qkv;                // [N, (H + 2 H_kv) D]; the q part is rotated in place
  const float* cos_sin;      // [max_pos, 2, D_rot / 2]
  const int32_t* positions;  // [N]
  const int32_t* slots;      // [N]
  void* kv_cache;            // [P, 2, H_kv, block_size, D]
  Format cache_format;
  const int32_t* num_rows;  // [1]
  const float* q_norm;      // [D] or nullptr
  const float* k_norm;      // [D] or nullptr
  float eps;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t half_rotary_dim;
  int64_t block_size;
};

void rope_kv_append(const RopeKvAppendArgs& args, Worker& worker);

}  // namespace sdengine
