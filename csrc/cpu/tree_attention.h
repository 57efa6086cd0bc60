// tree_attention: attention of packed rows over a paged cache, tree rows through ancestor masks.
#pragma once

#include "cpu/number_format.h"
#include "cpu/worker.h"

namespace sdengine {

struct TreeAttentionArgs {
  const float* qkv;      // [N, (H + 2 H_kv) D]; the q part is read
  const void* kv_cache;  // [P, 2, H_kv, block_size, D]
  Format cache_format;
  const int32_t* block_tables;   // [B, P_max]
  int64_t max_blocks;            // P_max
  const int32_t* positions;      // [N]; read with a window only
  const int32_t* visible_lens;   // [N]
  const int64_t* ancestor_mask;  // [N, W]
  int64_t mask_words;            // W; 0: no tree rows
  const int32_t* tree_starts;    // [B]
  const int32_t* cu_rows;        // [B + 1]
  const int32_t* num_rows;       // [1]
  void* out;                     // [N, H D]
  Format out_format;             // float32 or bfloat16
  float* scratch;                // partial results of work that is divided among workers
  int64_t scratch_floats;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t block_size;
  int64_t window;  // 0: none
  float scale;
};

void tree_attention(const TreeAttentionArgs& args, Worker& worker);

}  // namespace sdengine
