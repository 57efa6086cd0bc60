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

// Lanes past the end as +inf; n may be negative.
SDE_INLINE Vec past_end(Vec z, int n) {
  return select(first_lanes(n > 0 ? n : 0), z, broadcast(-kMinusInfinity));
}

SDE_INLINE Vec scaled_logits(Vec z, RowScale scale) {
  return (z - broadcast(scale.max)) * broadcast(scale.inverse_temperature);
}

RowScan scan_row(const float* logits, int64_t begin, int64_t end, float* block_max) {
  float row_max = kMinusInfinity;
  Vec least = broadcast(-kMinusInfinity);
  bool has_nan = false;
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    Vec best = broadcast(kMinusInfinity);
    Mask nan = is_nan(best);
    for (int64_t i = block; i < block + kVocabBlock; i += kLanes) {
      const Vec z = load_logits(logits, i, end);
      best = max(best, z);
      nan = nan | is_nan(z);
      least = min(least, i + kLanes <= end ? z : past_end(z, static_cast<int>(end - i)));
    }
    const float block_best = max_lane(best);
    block_max[block / kVocabBlock] = block_best;
    row_max = block_best > row_max ? block_best : row_max;
    has_nan = has_nan || any(nan);
  }
  return {row_max, -max_lane(-least), has_nan};
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

// Lanes below bins.low get a bin that means nothing.
SDE_INLINE IntVec bins_of(Vec z, LogitBins bins) {
  const Vec half = max(z, broadcast(bins.low)) * broadcast(0.5f);
  return truncate_to_int((broadcast(bins.half_high) - half) * broadcast(bins.per_half));
}

SDE_INLINE void add_to_bins(Vec z, RowScale scale, LogitBins bins, uint64_t* mass_of_bin) {
  const uint32_t inside = bits_of(less_equal(broadcast(bins.low), z));
  if (inside == 0) return;
  alignas(64) int32_t highs[kLanes], lows[kLanes], places[kLanes];
  IntVec high = broadcast_int(0);
  IntVec low = broadcast_int(0);
  add_mass(stable_exp(scaled_logits(z, scale)), &high, &low);
  store_int(highs, high);
  store_int(lows, low);
  store_int(places, bins_of(z, bins));
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((inside >> lane & 1u) == 0) continue;
    mass_of_bin[places[lane]] +=
        (static_cast<uint64_t>(highs[lane]) << 22) + static_cast<uint64_t>(lows[lane]);
  }
}

void histogram_row(const float* logits, int64_t begin, int64_t end, const float* block_max,
                   RowScale scale, LogitBins bins, uint64_t* mass_of_bin) {
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    if (block_max[block / kVocabBlock] < bins.low) continue;
    for (int64_t i = block; i < block + kVocabBlock && i < end; i += kLanes) {
      add_to_bins(load_logits(logits, i, end), scale, bins, mass_of_bin);
    }
  }
}

int64_t gather_bin_of_row(const float* logits, int64_t begin, int64_t end, const float* block_max,
                          LogitBins bins, int bin, float* values) {
  int64_t count = 0;
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    const float top = block_max[block / kVocabBlock];
    if (top < bins.low || bins.of(top) > bin) continue;
    for (int64_t i = block; i < block + kVocabBlock && i < end; i += kLanes) {
      const Vec z = load_logits(logits, i, end);
      const IntVec places = bins_of(z, bins);
      uint32_t inside =
          bits_of(equal(places, broadcast_int(bin)) & less_equal(broadcast(bins.low), z));
      for (; inside != 0; inside &= inside - 1) values[count++] = logits[i + __builtin_ctz(inside)];
    }
  }
  return count;
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

// Lanes whose score may reach `bound`. The noise is at most -log u, so a token can only reach it
// when u <= e^(scaled - bound); the exponential is bounded from above by a straight line between
// powers of two (in its bits), with 0.001 of slack for every rounding on the way. It spares both
// logarithms for all but a handful of tokens a row.
SDE_INLINE Mask may_reach(Vec scaled, IntVec words, Vec bound) {
  constexpr float kBitsPerUnit = 12102203.161561f;  // 2^23 / ln 2
  constexpr float kBitsOfScale = (127.0f + 31.0f) * 8388608.0f;
  const Vec bits =
      (scaled - bound + broadcast(0.001f)) * broadcast(kBitsPerUnit) + broadcast(kBitsOfScale);
  // Held within what converts: no bound at all (-inf) lets every token pass.
  const Vec held = min(max(bits, zeros()), broadcast(2.13e9f));
  const Vec limit = from_bits(truncate_to_int(held));
  return less(to_float(shift_right_logical<1>(words)), limit);
}

SDE_INLINE void race_words(const float* logits, int64_t first, int64_t end, RowScale scale,
                           Vec threshold, const IntVec* words, float bound, LaneBest* best) {
  Vec z[4];
  uint32_t reaches = 0;
  for (int j = 0; j < 4; ++j) {
    z[j] = load_logits(logits, first + j * kLanes, end);
    reaches |= bits_of(may_reach(scaled_logits(z[j], scale), words[j], broadcast(bound)) &
                       less_equal(threshold, z[j]));
  }
  if (reaches == 0) return;
  for (int j = 0; j < 4; ++j) {
    const Vec score = scaled_logits(z[j], scale) + gumbel_noise(words[j]);
    const Mask wins = less(best->score, score) & less_equal(threshold, z[j]);
    const IntVec tokens = iota() + broadcast_int(static_cast<int32_t>(first + j * kLanes));
    best->score = select(wins, score, best->score);
    best->token = select(wins, tokens, best->token);
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
    for (int64_t first = block; first < block + kVocabBlock && first < end; first += kDrawWidth) {
      IntVec words[4];
      random_words(key, offsets, first, words);
      race_words(logits, first, end, scale, broadcast(threshold), words, bound, &best);
    }
    const float found = max_lane(best.score);
    bound = found > bound ? found : bound;
  }
  return best_of_lanes(best);
}

SDE_INLINE void store_until(float* p, int64_t i, int64_t end, Vec a) {
  if (i + kLanes <= end) {
    store(p + i, a);
  } else if (i < end) {
    store_partial(p + i, a, static_cast<int>(end - i));
  }
}

void fill_noise_of_row(const NoiseKey& key, int64_t begin, int64_t end, float* noise) {
  const IntVec offsets = counter_offsets();
  for (int64_t first = begin; first < end; first += kDrawWidth) {
    IntVec words[4];
    random_words(key, offsets, first, words);
    for (int j = 0; j < 4; ++j) store_until(noise, first + j * kLanes, end, gumbel_noise(words[j]));
  }
}

void perturb_row(const float* logits, int64_t begin, int64_t end, RowScale scale,
                 const float* noise, float* scores, float* block_max) {
  for (int64_t block = begin; block < end; block += kVocabBlock) {
    Vec best = broadcast(kMinusInfinity);
    for (int64_t i = block; i < block + kVocabBlock && i < end; i += kLanes) {
      const Vec score =
          scaled_logits(load_logits(logits, i, end), scale) + load_logits(noise, i, end);
      best = max(best, score);
      store_until(scores, i, end, score);
    }
    block_max[block / kVocabBlock] = max_lane(best);
  }
}

SDE_INLINE Vec penalized_lanes(Vec z, IntVec prompt, IntVec output, const Penalties& penalties) {
  const Vec repetition = broadcast(penalties.repetition);
  const IntVec none = broadcast_int(0);
  const Vec scaled = select(less(zeros(), z), z / repetition, z * repetition);
  const Vec base = select(less(none, prompt + output), scaled, z);
  const Vec present = select(less(none, output), broadcast(penalties.presence), zeros());
  return base - (broadcast(penalties.frequency) * to_float(output) + present);
}

void penalize_row(float* logits, const int32_t* prompt_counts, const int32_t* output_counts,
                  int64_t begin, int64_t end, const Penalties& penalties) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const Vec z = penalized_lanes(load(logits + i), load_int(prompt_counts + i),
                                  load_int(output_counts + i), penalties);
    store(logits + i, z);
  }
  if (i >= end) return;
  const int n = static_cast<int>(end - i);
  const Vec z = penalized_lanes(load_partial(logits + i, n), load_int_partial(prompt_counts + i, n),
                                load_int_partial(output_counts + i, n), penalties);
  store_partial(logits + i, z, n);
}

uint64_t at_least_in_block(const float* scores, int64_t begin, int64_t end, float floor) {
  static_assert(kVocabBlock <= 64, "a bit for every score");
  uint64_t bits = 0;
  for (int64_t i = 0; i < kVocabBlock && begin + i < end; i += kLanes) {
    const Vec z = load_logits(scores, begin + i, end);
    bits |= uint64_t{bits_of(less_equal(broadcast(floor), z))} << i;
  }
  const int64_t count = end - begin;
  return count < 64 ? bits & ((uint64_t{1} << count) - 1) : bits;
}

void fold_max_of_row(const float* logits, int64_t vocab_size, int64_t count, float* best) {
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec largest = broadcast(kMinusInfinity);
    for (int64_t i = j; i < vocab_size; i += count) {
      largest = max(largest, load_logits(logits, i, vocab_size));
    }
    store(best + j, largest);
  }
}

void count_above_each(const float* values, int count, int32_t* above) {
  for (int i = 0; i < count; i += kLanes) {
    const Vec own = load(values + i);
    IntVec larger = broadcast_int(0);
    for (int j = 0; j < count; ++j) {
      const Mask is_larger = less(own, broadcast(values[j]));
      larger = larger + select(is_larger, broadcast_int(1), broadcast_int(0));
    }
    store_int(above + i, larger);
  }
}

// Constant, so that no instruction of a wider set runs while the library is loaded.
constexpr VocabPasses kThesePasses = {
    kLanes,      scan_row,          mass_of_row,     histogram_row,    gather_bin_of_row,
    race_row,    at_least_in_block, fold_max_of_row, count_above_each, fill_noise_of_row,
    perturb_row, penalize_row};

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
