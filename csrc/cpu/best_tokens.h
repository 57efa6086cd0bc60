// The K best of a row of scores, in order.
#pragma once

#include <cstdint>

#include "cpu/vocab_passes.h"

namespace sdengine {

// The k-th largest value; -inf when there are fewer. Of block maxima: k tokens of the row reach it,
// so the row's k-th best does not lie below.
float kth_largest(const float* values, int64_t count, int64_t k);

// Fills best[0:k) by score descending, token id ascending; returns how many of the row's scores are
// above -inf, at most k. block_max: maxima of the scores' blocks.
int best_tokens(const float* scores, int64_t vocab_size, const float* block_max, int k,
                ScoredToken* best);

}  // namespace sdengine
