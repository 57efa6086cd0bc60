#include "cpu/row_plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/best_tokens.h"

namespace sdengine {
namespace {

constexpr int32_t kGatheredTopK = 1024;
constexpr float kNear = 8.0f;        // scaled logits below the largest that are looked at first,
constexpr int64_t kMostNear = 4096;  // unless so many tokens lie there
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Logits >= low, in no order that matters. Reused between rows: the largest row decides its size.
std::vector<float>& gather_candidates(const float* logits, int64_t vocab_size,
                                      const float* block_max, float low) {
  thread_local std::vector<float> candidates;
  candidates.clear();
  for (int64_t begin = 0; begin < vocab_size; begin += kVocabBlock) {
    if (block_max[begin / kVocabBlock] < low) continue;
    uint64_t reach = vocab_passes().at_least(logits, begin, vocab_size, low);
    for (; reach != 0; reach &= reach - 1) {
      candidates.push_back(logits[begin + __builtin_ctzll(reach)]);
    }
  }
  return candidates;
}

// A logit that at least k tokens reach, and not many more: the k-th largest of as many maxima as
// there are groups of tokens. Blocks are such groups; a small vocabulary, which has fewer than k of
// them, is folded into four times k.
float floor_of_top_k(const float* logits, int64_t vocab_size, const float* block_max, int64_t k) {
  const int64_t num_blocks = num_vocab_blocks(vocab_size);
  const int64_t num_folds = (4 * k + kVocabBlock - 1) / kVocabBlock * kVocabBlock;
  if (k <= num_blocks || num_folds > vocab_size) return kth_largest(block_max, num_blocks, k);
  thread_local std::vector<float> best;
  best.resize(num_folds);
  vocab_passes().fold_max(logits, vocab_size, num_folds, best.data());
  return kth_largest(best.data(), num_folds, k);
}

float top_k_threshold(const float* logits, int64_t vocab_size, const float* block_max, int64_t k) {
  const float low = floor_of_top_k(logits, vocab_size, block_max, k);
  std::vector<float>& candidates = gather_candidates(logits, vocab_size, block_max, low);
  std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(),
                   std::greater<float>());
  return candidates[k - 1];
}

// The largest value such that the values >= it weigh at least `needed`: halves the undecided part
// until one is left.
float mass_threshold(float* values, int64_t count, RowScale scale, uint64_t needed) {
  int64_t low = 0;
  int64_t high = count;
  uint64_t above = 0;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    std::nth_element(values + low, values + middle, values + high, std::greater<float>());
    const uint64_t half = vocab_passes().mass(values, low, middle, scale, kMinusInfinity);
    if (above + half >= needed) {
      high = middle;
    } else {
      above += half;
      low = middle;
    }
  }
  return values[low];
}

// Top-p on a set small enough to gather.
float top_p_of_candidates(std::vector<float>& candidates, RowScale scale, float top_p) {
  const int64_t count = static_cast<int64_t>(candidates.size());
  const uint64_t total = vocab_passes().mass(candidates.data(), 0, count, scale, kMinusInfinity);
  return mass_threshold(candidates.data(), count, scale, needed_mass(top_p, total));
}

// Top-p on the renormalised set {logit >= floor}. Mostly few tokens weigh enough together; else one
// pass sorts mass into bins, then one bin is looked at closely.
float top_p_threshold(const float* logits, int64_t vocab_size, const float* block_max,
                      RowScale scale, float floor, float top_p) {
  const uint64_t needed =
      needed_mass(top_p, vocab_passes().mass(logits, 0, vocab_size, scale, floor));
  const float near = std::max(floor, scale.max - kNear / scale.inverse_temperature);
  std::vector<float>& candidates = gather_candidates(logits, vocab_size, block_max, near);
  const int64_t num_near = static_cast<int64_t>(candidates.size());
  if (num_near <= kMostNear) {
    const uint64_t mass = vocab_passes().mass(candidates.data(), 0, num_near, scale, floor);
    if (mass >= needed) return mass_threshold(candidates.data(), num_near, scale, needed);
  }
  thread_local std::vector<uint64_t> mass_of_bin;
  mass_of_bin.assign(LogitBins::kCount + 1, 0);
  const LogitBins bins = LogitBins::over(floor, scale.max);
  vocab_passes().histogram(logits, 0, vocab_size, block_max, scale, bins, mass_of_bin.data());
  uint64_t above = 0;
  int bin = 0;
  while (above + mass_of_bin[bin] < needed) above += mass_of_bin[bin++];
  thread_local std::vector<float> values;
  if (static_cast<int64_t>(values.size()) < vocab_size) values.resize(vocab_size);
  const int64_t count =
      vocab_passes().gather_bin(logits, 0, vocab_size, block_max, bins, bin, values.data());
  return mass_threshold(values.data(), count, scale, needed - above);
}

float allowed_threshold(const float* logits, int64_t vocab_size, const float* block_max,
                        RowScale scale, const SamplingTablesView& tables, int32_t b,
                        float row_min) {
  float threshold = kMinusInfinity;
  const bool has_top_k = tables.top_k[b] >= 1 && tables.top_k[b] < vocab_size;
  if (has_top_k) {
    threshold = top_k_threshold(logits, vocab_size, block_max, tables.top_k[b]);
  }
  if (tables.top_p[b] < 1.0f && has_top_k && tables.top_k[b] <= kGatheredTopK) {
    threshold = top_p_of_candidates(gather_candidates(logits, vocab_size, block_max, threshold),
                                    scale, tables.top_p[b]);
  } else if (tables.top_p[b] < 1.0f) {
    // Below max - 32 T a token's mass rounds to 0. That is -inf for T of 1e37 and more, as row_min
    // is where a token is masked; no logit that has a mass is below the lowest number.
    const float weightless = scale.max - 32.0f / scale.inverse_temperature;
    constexpr float kLowest = std::numeric_limits<float>::lowest();
    const float floor = std::max({threshold, row_min, weightless, kLowest});
    threshold = top_p_threshold(logits, vocab_size, block_max, scale, floor, tables.top_p[b]);
  }
  if (tables.min_p[b] > 0.0f) {
    threshold = std::max(threshold, min_p_threshold(scale, tables.min_p[b], tables.temperature[b]));
  }
  return threshold;
}

}  // namespace

int32_t first_token_with(const float* logits, int64_t vocab_size, const float* block_max,
                         float value) {
  int64_t block = 0;
  while (block_max[block] != value) ++block;
  int64_t i = block * kVocabBlock;
  while (logits[i] != value) ++i;
  return static_cast<int32_t>(i);
}

RowPlan plan_row(const float* logits, int64_t vocab_size, const float* block_max, RowScan scan,
                 const SamplingTablesView& tables, int32_t b) {
  if (scan.has_nan || !std::isfinite(scan.max)) return {{0.0f, 1.0f}, 0.0f, -1, true};
  RowPlan plan;
  plan.scale = row_scale(scan.max, tables.temperature[b]);
  plan.argmax = first_token_with(logits, vocab_size, block_max, scan.max);
  plan.is_greedy = tables.temperature[b] < kGreedyTemperature;
  plan.threshold = plan.is_greedy ? scan.max
                                  : allowed_threshold(logits, vocab_size, block_max, plan.scale,
                                                      tables, b, scan.min);
  return plan;
}

ScoredToken draw_from_plan(const float* logits, int64_t begin, int64_t end, const float* block_max,
                           const RowPlan& plan, const NoiseKey& key) {
  if (plan.is_greedy) return {0.0f, plan.argmax};
  const float bound = perturbed_score(plan.scale.max, plan.scale.max,
                                      plan.scale.inverse_temperature, gumbel(key, plan.argmax));
  return vocab_passes().race(logits, begin, end, block_max, plan.scale, plan.threshold, key, bound);
}

}  // namespace sdengine
