// penalize: penalties, logit bias and banned stop tokens, in place.
#pragma once

#include "cpu/worker.h"
#include "sdengine/penalty.h"

namespace sdengine {

struct PenalizeArgs {
  float* logits;                 // [N, V]
  const int32_t* rows;           // [N] packed row of each logits row, or nullptr: the same row
  const int32_t* row_seq;        // by packed row
  const int32_t* row_node;       // by packed row, or nullptr: no trees
  const int32_t* parents;        // [B, T + 1], or nullptr: no trees
  const int32_t* tokens;         // [B, T + 1]
  int32_t tree_stride;           // T + 1
  const int32_t* prompt_counts;  // [B, V'], V' >= V
  const int32_t* output_counts;  // [B, V']
  int64_t count_stride;          // V'
  const float* repetition;       // [B]
  const float* presence;         // [B]
  const float* frequency;        // [B]
  const int32_t* bias_ids;       // [B, M]
  const float* bias_values;      // [B, M]
  const int32_t* num_bias;       // [B]
  int32_t max_bias;              // M
  const int32_t* stop_ids;       // [B, S]
  const int32_t* num_stops;      // [B]
  int32_t max_stops;             // S
  const int32_t* min_lens;       // [B]
  const int32_t* history_lens;   // [B]
  const int32_t* num_rows;       // [1]
  int64_t vocab_size;
};

void penalize(const PenalizeArgs& args, Worker& worker);

}  // namespace sdengine
