// Text of the passes, compiled once per instruction set.
#include <limits>

#include "cpu/noise_vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Lanes past the end count as logits of -inf.
SDE_INLINE Vec load_logits(const float* logits, int64_t i, int64_t end) {
  if (i + kLanes <= end) return load(logits + i);
  if (i >= end) return broadcast(kMinusInfinity);
  const int n = static_cast<int>(end - i);
  return select(first_lanes(n), load_partial(logits + i, n), broadcast(kMinusInfinity));
}

SDE_INLINE Vec scaled_logits(Vec z, RowScale scale) {
  return (z - broadcast(scale.max)) * broadcast(scale.inverse_temperature);
}

RowScan scan_row(const float* logits, int64_t begin, int64_t end, float* block_max) {
  float row_max = kMinusInfinity;
  bool has_nan = false;
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    Vec best = broadcast(kMinusInfinity);
    Mask nan = is_nan(best);
    for (int64_t i = block; i < block + kVocabBlock; i += kLanes) {
      const Vec z = load_logits(logits, i, end);
      best = max(best, z);
      nan = nan | is_nan(z);
    }
    const float block_best = max_lane(best);
    block_max[block / kVocabBlock] = block_best;
    row_max = block_best > row_max ? block_best : row_max;
    has_nan = has_nan || any(nan);
  }
  return {row_max, has_nan};
}

// Adds a in units of 2^-44, rounded to nearest even: the whole part in units of 2^-22, then the
// exact remainder.
SDE_INLINE void add_mass(Vec weight, IntVec* high, IntVec* low) {
  const Vec scaled = weight * broadcast(4194304.0f);
  const IntVec whole = truncate_to_int(scaled);
  *high = *high + whole;
  *low = *low + round_to_int((scaled - to_float(whole)) * broadcast(4194304.0f));
}

SDE_INLINE uint64_t total_mass(IntVec high, IntVec low) {
  alignas(64) int32_t highs[kLanes], lows[kLanes];
  store_int(highs, high);
  store_int(lows, low);
  uint64_t total = 0;
  for (int i = 0; i < kLanes; ++i) {
    total += (static_cast<uint64_t>(highs[i]) << 22) + static_cast<uint64_t>(lows[i]);
  }
  return total;
}

uint64_t mass_of_row(const float* logits, int64_t begin, int64_t end, RowScale scale,
                     float threshold) {
  constexpr int64_t kFlush = 256 * kLanes;  // a lane holds at most 511 terms of 2^22
  uint64_t total = 0;
  for (int64_t start = begin; start < end; start += kFlush) {
    const int64_t stop = start + kFlush < end ? start + kFlush : end;
    IntVec high = broadcast_int(0);
    IntVec low = broadcast_int(0);
    for (int64_t i = start; i < stop; i += kLanes) {
      const Vec z = load_logits(logits, i, stop);
      const Vec weight = stable_exp(scaled_logits(z, scale));
      add_mass(select(less(z, broadcast(threshold)), zeros(), weight), &high, &low);
    }
    total += total_mass(high, low);
  }
  return total;
}

// The best score so far of every lane; a lane meets its tokens in rising order, so strict
// improvement keeps the lowest.
struct LaneBest {
  Vec score;
  IntVec token;
};

SDE_INLINE ScoredToken best_of_lanes(LaneBest best) {
  alignas(64) float scores[kLanes];
  alignas(64) int32_t tokens[kLanes];
  store(scores, best.score);
  store_int(tokens, best.token);
  ScoredToken winner = {kMinusInfinity, -1};
  for (int i = 0; i < kLanes; ++i) {
    if (tokens[i] < 0) continue;
    if (winner.token < 0 || scores[i] > winner.score ||
        (scores[i] == winner.score && tokens[i] < winner.token)) {
      winner = {scores[i], tokens[i]};
    }
  }
  return winner;
}

SDE_INLINE void race_block(const float* logits, int64_t block, int64_t end, RowScale scale,
                           Vec threshold, const NoiseKey& key, IntVec offsets, LaneBest* best) {
  for (int64_t first = block; first < block + kVocabBlock && first < end; first += kDrawWidth) {
    IntVec words[4];
    random_words(key, offsets, first, words);
    for (int j = 0; j < 4; ++j) {
      const int64_t i = first + j * kLanes;
      const Vec z = load_logits(logits, i, end);
      const Vec score = scaled_logits(z, scale) + gumbel_noise(words[j]);
      const Mask wins = less(best->score, score) & less_equal(threshold, z);
      best->score = select(wins, score, best->score);
      best->token = select(wins, iota() + broadcast_int(static_cast<int32_t>(i)), best->token);
    }
  }
}

ScoredToken race_row(const float* logits, int64_t begin, int64_t end, const float* block_max,
                     RowScale scale, float threshold, const NoiseKey& key, float bound) {
  const IntVec offsets = counter_offsets();
  LaneBest best = {broadcast(kMinusInfinity), broadcast_int(-1)};
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    const float top = block_max[block / kVocabBlock];
    const float reachable = (top - scale.max) * scale.inverse_temperature + kMaxGumbel;
    if (top < threshold || reachable < bound) continue;
    race_block(logits, block, end, scale, broadcast(threshold), key, offsets, &best);
    const float found = max_lane(best.score);
    bound = found > bound ? found : bound;
  }
  return best_of_lanes(best);
}

void perturb_row(const float* logits, int64_t begin, int64_t end, RowScale scale,
                 const NoiseKey* key, float* scores, float* block_max) {
  const IntVec offsets = counter_offsets();
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    Vec best = broadcast(kMinusInfinity);
    for (int64_t first = block; first < block + kVocabBlock && first < end; first += kDrawWidth) {
      IntVec words[4];
      if (key != nullptr) random_words(*key, offsets, first, words);
      for (int64_t i = first; i < first + kDrawWidth && i < end; i += kLanes) {
        Vec score = scaled_logits(load_logits(logits, i, end), scale);
        if (key != nullptr) score = score + gumbel_noise(words[(i - first) / kLanes]);
        best = max(best, score);
        if (i + kLanes <= end) {
          store(scores + i, score);
        } else {
          store_partial(scores + i, score, static_cast<int>(end - i));
        }
      }
    }
    block_max[block / kVocabBlock] = max_lane(best);
  }
}

// Constant, so that no instruction of a wider set runs while the library is loaded.
constexpr VocabPasses kThesePasses = {scan_row, mass_of_row, race_row, perturb_row};

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
