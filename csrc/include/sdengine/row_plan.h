// What one row of logits and its sequence's parameters come to: who may be drawn, and how logits
// are weighted.
#pragma once

#include <cstdint>

#include "sdengine/philox.h"

namespace sdengine {

// Per-sequence sampling parameters, struct of arrays over B; see kernels/sampling_tables.py, whose
// seeds come beside them.
struct SamplingTablesView {
  const float* temperature;
  const int32_t* top_k;  // < 1: off
  const float* top_p;    // >= 1: off
  const float* min_p;    // <= 0: off
};

constexpr float kGreedyTemperature = 1e-5f;  // below it the row is greedy

// How a row's logits become scaled log-weights: (logit - max) * inverse_temperature.
struct RowScale {
  float max;
  float inverse_temperature;
};

// A token is allowed when its logit >= threshold.
struct RowPlan {
  RowScale scale;
  float threshold;
  int32_t argmax;  // lowest id among the largest logits; -1 when nothing can be drawn (NaN, +inf,
                   // or all -inf)
  bool is_greedy;
};

struct ScoredToken {
  float score;
  int32_t token;  // -1: none
};

// Weights are added up as integers in units of 2^-44, so their sum has no order.
constexpr double kMassUnit = 1.0 / (1ll << 44);

// A weight in [0, 1] in units of 2^-44, rounded to nearest even: the whole part in units of 2^-22,
// then the exact remainder.
SDE_HD inline uint64_t token_mass(float weight) {
  const scalar::Vec unit = {4194304.0f};        // 2^22
  const scalar::Vec to_integer = {8388608.0f};  // 2^23: adding it rounds to an integer
  const scalar::Vec scaled = scalar::Vec{weight} * unit;
  const uint32_t whole = static_cast<uint32_t>(scaled.v);
  const scalar::Vec rest = (scaled - scalar::Vec{static_cast<float>(whole)}) * unit;
  const scalar::Vec rounded = (rest + to_integer) - to_integer;
  return (static_cast<uint64_t>(whole) << 22) + static_cast<uint64_t>(rounded.v);
}

// The row's scale alone: greedy rows weigh logits as at temperature 1.
SDE_HD inline RowScale row_scale(float row_max, float temperature) {
  return {row_max, temperature < kGreedyTemperature ? 1.0f : 1.0f / temperature};
}

// The least mass that the allowed tokens must reach; `total` is that of all of them.
SDE_HD inline uint64_t needed_mass(float top_p, uint64_t total) {
  const double share = top_p > 0.0f ? static_cast<double>(top_p) : 0.0;
  const double wanted = share * static_cast<double>(total);
  uint64_t needed = static_cast<uint64_t>(wanted);
  if (static_cast<double>(needed) < wanted) ++needed;
  needed = needed > 1 ? needed : 1;
  return needed < total ? needed : total;
}

// The logit that min-p cuts at.
SDE_HD inline float min_p_threshold(RowScale scale, float min_p, float temperature) {
  const float floor = min_p > 1e-37f ? min_p : 1e-37f;
  const scalar::Vec ratio = scalar::stable_log({floor < 1.0f ? floor : 1.0f});
  return (scalar::Vec{scale.max} + ratio * scalar::Vec{temperature}).v;
}

}  // namespace sdengine
