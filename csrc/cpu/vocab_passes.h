// Passes over one row of logits, vectorised; the sampling ops are made of them.
//
// Every result is independent of how a row is cut into ranges: maxima, lowest-id argmax and integer
// masses do not depend on order. So slicing a row over workers cannot change a token.
#pragma once

#include <cstdint>

#include "sdengine/noise.h"
#include "sdengine/penalty.h"
#include "sdengine/row_plan.h"

namespace sdengine {

constexpr int64_t kVocabBlock =
    64;  // tokens that share one block maximum; ranges begin at multiples of it

inline int64_t num_vocab_blocks(int64_t vocab_size) {
  return (vocab_size + kVocabBlock - 1) / kVocabBlock;
}

struct RowScan {
  float max;  // -inf for an empty range
  float min;  // inf for an empty range
  bool has_nan;
};

// Bins of equal width over finite logits [low, high], the highest logits first; the same on every
// machine. Differences are taken of halves, which cannot overflow: a bin is a place in memory.
struct LogitBins {
  static constexpr int kCount = 2048;
  float half_high;
  float low;
  float per_half;

  static LogitBins over(float low, float high) {
    const float half_width = 0.5f * high - 0.5f * low;  // -0 for zeros of either sign
    const float per_half = static_cast<float>(kCount - 1) / half_width;
    return {0.5f * high, low, half_width > 0.0f && per_half < 1e30f ? per_half : 0.0f};
  }
  int of(float logit) const { return static_cast<int>((half_high - 0.5f * logit) * per_half); }
};

struct VocabPasses {
  int lanes;  // floats of a vector

  // Maximum of logits[begin:end) and of each block (block_max is indexed from block 0 of the row).
  RowScan (*scan)(const float* logits, int64_t begin, int64_t end, float* block_max);

  // Sum of exp(scaled logit) over logits >= threshold, each rounded to a multiple of 2^-44. Any
  // begin and end.
  uint64_t (*mass)(const float* logits, int64_t begin, int64_t end, RowScale scale,
                   float threshold);

  // mass_of_bin[bins.of(z)] += mass of z, for logits z >= bins.low. Blocks below are skipped
  // unseen.
  void (*histogram)(const float* logits, int64_t begin, int64_t end, const float* block_max,
                    RowScale scale, LogitBins bins, uint64_t* mass_of_bin);

  // Appends the logits >= bins.low of one bin to `values` (room for all), returns how many.
  int64_t (*gather_bin)(const float* logits, int64_t begin, int64_t end, const float* block_max,
                        LogitBins bins, int bin, float* values);

  // Best token of logits[begin:end) among logits >= threshold by perturbed score, lowest id on
  // ties. Blocks and draws that cannot reach `bound` (a score known to be attained by an allowed
  // token) are skipped unseen.
  ScoredToken (*race)(const float* logits, int64_t begin, int64_t end, const float* block_max,
                      RowScale scale, float threshold, const NoiseKey& key, float bound);

  // Bit i: whether scores[begin + i] >= floor, for the block that begins there. NaN is not.
  uint64_t (*at_least)(const float* scores, int64_t begin, int64_t end, float floor);

  // best[j] = maximum of logits[j], logits[j + count], ..., for j < count, a multiple of
  // kVocabBlock.
  void (*fold_max)(const float* logits, int64_t vocab_size, int64_t count, float* best);

  // above[i] = how many of the `count` values are larger than values[i]; both have room for whole
  // vectors of sixteen.
  void (*count_above)(const float* values, int count, int32_t* above);

  // noise[begin:end) = Gumbel noise of the tokens; begin is a multiple of kVocabBlock.
  void (*fill_noise)(const NoiseKey& key, int64_t begin, int64_t end, float* noise);

  // scores[begin:end) = scaled logits + noise, with their block maxima.
  void (*perturb)(const float* logits, int64_t begin, int64_t end, RowScale scale,
                  const float* noise, float* scores, float* block_max);

  // logits[begin:end) = penalized() of each; any begin and end.
  void (*penalize)(float* logits, const int32_t* prompt_counts, const int32_t* output_counts,
                   int64_t begin, int64_t end, const Penalties& penalties);
};

// The passes for the instruction set of this process.
const VocabPasses& vocab_passes();

}  // namespace sdengine
