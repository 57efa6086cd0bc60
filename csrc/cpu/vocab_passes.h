// Passes over one row of logits, vectorised; the sampling ops are made of them.
//
// Every result is independent of how a row is cut into ranges: maxima, lowest-id argmax and integer
// masses do not depend on order. So slicing a row over workers cannot change a token.
#pragma once

#include <cstdint>

#include "sdengine/noise.h"

namespace sdengine {

constexpr int64_t kVocabBlock =
    64;  // tokens that share one block maximum; ranges begin at multiples of it

inline int64_t num_vocab_blocks(int64_t vocab_size) {
  return (vocab_size + kVocabBlock - 1) / kVocabBlock;
}

// Weights are added up as integers in units of 2^-44, so their sum has no order.
constexpr double kMassUnit = 1.0 / (1ll << 44);

// How a row's logits become scaled log-weights: (logit - max) * inverse_temperature.
struct RowScale {
  float max;
  float inverse_temperature;
};

struct RowScan {
  float max;  // -inf for an empty range
  bool has_nan;
};

struct ScoredToken {
  float score;
  int32_t token;  // -1: none
};

struct VocabPasses {
  // Maximum of logits[begin:end) and of each block (block_max is indexed from block 0 of the row).
  RowScan (*scan)(const float* logits, int64_t begin, int64_t end, float* block_max);

  // Sum of exp(scaled logit) over logits >= threshold, each rounded to a multiple of 2^-44. Any
  // begin and end.
  uint64_t (*mass)(const float* logits, int64_t begin, int64_t end, RowScale scale,
                   float threshold);

  // Best token of logits[begin:end) among logits >= threshold by perturbed score, lowest id on
  // ties. Blocks and draws that cannot reach `bound` (a score known to be attained by an allowed
  // token) are skipped unseen.
  ScoredToken (*race)(const float* logits, int64_t begin, int64_t end, const float* block_max,
                      RowScale scale, float threshold, const NoiseKey& key, float bound);

  // scores[begin:end) = perturbed scores, with their block maxima; key == nullptr: without noise.
  void (*perturb)(const float* logits, int64_t begin, int64_t end, RowScale scale,
                  const NoiseKey* key, float* scores, float* block_max);
};

// The passes for the instruction set of this process.
const VocabPasses& vocab_passes();

}  // namespace sdengine
