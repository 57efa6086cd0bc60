// What one row of logits and its sequence's parameters come to: who may be drawn, and how logits
// are weighted.
#pragma once

#include <cstdint>

#include "cpu/vocab_passes.h"

namespace sdengine {

// Per-sequence sampling parameters, struct of arrays over B.
struct SamplingTables {
  const float* temperature;
  const int32_t* top_k;  // < 1: off
  const float* top_p;    // >= 1: off
  const float* min_p;    // <= 0: off
};

constexpr float kGreedyTemperature = 1e-5f;  // below it the row is greedy

// A token is allowed when its logit >= threshold.
struct RowPlan {
  RowScale scale;
  float threshold;
  int32_t argmax;  // lowest id among the largest logits; -1 when nothing can be drawn (NaN, +inf,
                   // or all -inf)
  bool is_greedy;
};

// The row's scale alone: greedy rows weigh logits as at temperature 1.
RowScale row_scale(float row_max, float temperature);

// Lowest token id with that logit, through the block maxima of a scanned row.
int32_t first_token_with(const float* logits, int64_t vocab_size, const float* block_max,
                         float value);

// Plans a scanned row of sequence b.
RowPlan plan_row(const float* logits, int64_t vocab_size, const float* block_max, RowScan scan,
                 const SamplingTables& tables, int32_t b);

// Draws from a planned row: argmax when greedy, else the best perturbed score over
// logits[begin:end).
ScoredToken draw_from_plan(const float* logits, int64_t begin, int64_t end, const float* block_max,
                           const RowPlan& plan, const NoiseKey& key);

}  // namespace sdengine
