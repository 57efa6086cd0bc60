// Plans rows of logits: who may be drawn, and how logits are weighted.
#pragma once

#include <cstdint>

#include "cpu/vocab_passes.h"
#include "sdengine/row_plan.h"

namespace sdengine {

// Lowest token id with that logit, through the block maxima of a scanned row.
int32_t first_token_with(const float* logits, int64_t vocab_size, const float* block_max,
                         float value);

// Plans a scanned row of sequence b.
RowPlan plan_row(const float* logits, int64_t vocab_size, const float* block_max, RowScan scan,
                 const SamplingTablesView& tables, int32_t b);

// Draws from a planned row: argmax when greedy, else the best perturbed score over
// logits[begin:end).
ScoredToken draw_from_plan(const float* logits, int64_t begin, int64_t end, const float* block_max,
                           const RowPlan& plan, const NoiseKey& key);

}  // namespace sdengine
