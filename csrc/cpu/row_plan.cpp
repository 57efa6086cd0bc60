#include "cpu/row_plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace sdengine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Logits >= low, in no order that matters. Reused between rows: the largest row decides its size.
std::vector<float>& gather_candidates(const float* logits, int64_t vocab_size,
                                      const float* block_max, float low) {
  thread_local std::vector<float> candidates;
  candidates.clear();
  for (int64_t block = 0; block * kVocabBlock < vocab_size; ++block) {
    if (block_max[block] < low) continue;
    const int64_t end = std::min(vocab_size, (block + 1) * kVocabBlock);
    for (int64_t i = block * kVocabBlock; i < end; ++i) {
      if (logits[i] >= low) candidates.push_back(logits[i]);
    }
  }
  return candidates;
}

// The k-th largest of the block maxima: at least k logits reach it, so the k-th largest logit does
// not lie below.
float top_k_floor(const float* block_max, int64_t num_blocks, int64_t k) {
  if (k > num_blocks) return kMinusInfinity;
  thread_local std::vector<float> maxima;
  maxima.assign(block_max, block_max + num_blocks);
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return maxima[k - 1];
}

float top_k_threshold(const float* logits, int64_t vocab_size, const float* block_max, int64_t k) {
  const float low = top_k_floor(block_max, num_vocab_blocks(vocab_size), k);
  std::vector<float>& candidates = gather_candidates(logits, vocab_size, block_max, low);
  std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(),
                   std::greater<float>());
  return candidates[k - 1];
}

// The largest value such that the values >= it weigh at least `needed`: halves the undecided part
// until one is left.
float mass_threshold(std::vector<float>& values, RowScale scale, uint64_t needed) {
  int64_t low = 0;
  int64_t high = static_cast<int64_t>(values.size());
  uint64_t above = 0;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    std::nth_element(values.begin() + low, values.begin() + middle, values.begin() + high,
                     std::greater<float>());
    const uint64_t half = vocab_passes().mass(values.data(), low, middle, scale, kMinusInfinity);
    if (above + half >= needed) {
      high = middle;
    } else {
      above += half;
      low = middle;
    }
  }
  return values[low];
}

// Top-p on the renormalised set {logit >= threshold}.
float top_p_threshold(const float* logits, int64_t vocab_size, const float* block_max,
                      RowScale scale, float threshold, float top_p) {
  const uint64_t total = vocab_passes().mass(logits, 0, vocab_size, scale, threshold);
  const double wanted =
      std::ceil(static_cast<double>(std::max(top_p, 0.0f)) * static_cast<double>(total));
  const uint64_t needed =
      std::min<uint64_t>(total, std::max<uint64_t>(1, static_cast<uint64_t>(wanted)));
  // Tokens lighter than (total - needed) / V are dispensable all together; one e-fold of slack
  // covers rounding.
  const double spare =
      static_cast<double>(total - needed) / static_cast<double>(vocab_size) * kMassUnit;
  float low = threshold;
  if (spare > 0.0) {
    const double floor = scale.max + (std::log(spare) - 1.0) / scale.inverse_temperature;
    low = std::max(low, static_cast<float>(floor));
  }
  return mass_threshold(gather_candidates(logits, vocab_size, block_max, low), scale, needed);
}

float allowed_threshold(const float* logits, int64_t vocab_size, const float* block_max,
                        RowScale scale, const SamplingTables& tables, int32_t b) {
  float threshold = kMinusInfinity;
  if (tables.top_k[b] >= 1 && tables.top_k[b] < vocab_size) {
    threshold = top_k_threshold(logits, vocab_size, block_max, tables.top_k[b]);
  }
  if (tables.top_p[b] < 1.0f) {
    threshold = top_p_threshold(logits, vocab_size, block_max, scale, threshold, tables.top_p[b]);
  }
  if (tables.min_p[b] > 0.0f) {
    const float log_ratio =
        scalar::stable_log({std::min(std::max(tables.min_p[b], 1e-37f), 1.0f)}).v;
    threshold = std::max(threshold, scale.max + log_ratio * tables.temperature[b]);
  }
  return threshold;
}

}  // namespace

RowScale row_scale(float row_max, float temperature) {
  return {row_max, temperature < kGreedyTemperature ? 1.0f : 1.0f / temperature};
}

int32_t first_token_with(const float* logits, int64_t vocab_size, const float* block_max,
                         float value) {
  int64_t block = 0;
  while (block_max[block] != value) ++block;
  int64_t i = block * kVocabBlock;
  while (logits[i] != value) ++i;
  return static_cast<int32_t>(i);
}

RowPlan plan_row(const float* logits, int64_t vocab_size, const float* block_max, RowScan scan,
                 const SamplingTables& tables, int32_t b) {
  if (scan.has_nan || !std::isfinite(scan.max)) return {{0.0f, 1.0f}, 0.0f, -1, true};
  RowPlan plan;
  plan.scale = row_scale(scan.max, tables.temperature[b]);
  plan.argmax = first_token_with(logits, vocab_size, block_max, scan.max);
  plan.is_greedy = tables.temperature[b] < kGreedyTemperature;
  plan.threshold = plan.is_greedy
                       ? scan.max
                       : allowed_threshold(logits, vocab_size, block_max, plan.scale, tables, b);
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
