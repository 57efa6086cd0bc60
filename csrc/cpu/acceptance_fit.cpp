#include "cpu/acceptance_fit.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sdengine {
namespace {

constexpr int kBins = kCalibrationBins;
constexpr int kCells = kCalibrationCells;

// As in kernels/acceptance_fit.py, with their reasons.
constexpr double kCurveWeight = 32.0;
constexpr double kOffsetPrecision = 0.5, kSlopePrecision = 4.0;
constexpr int kNewtonSteps = 3;
constexpr double kLongestStep = 0.7;
constexpr double kClassWeight = 8.0, kLevelWeight = 2.0;

double logit_of_bin(int bin) {
  const double center = calibration_center(bin);
  return std::log(center / (1.0 - center));
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// One of Newton's steps to the largest posterior probability, shortened where it is long.
void step_curve(const double* tried, const double* accepted, AcceptanceCurve& curve) {
  const double slope = std::exp(curve.log_slope);
  double by_offset = 0.0, by_slope = 0.0, first = 0.0, cross = 0.0, second = 0.0;
  for (int bin = 0; bin < kBins; ++bin) {
    if (tried[bin] == 0.0 && accepted[bin] == 0.0) continue;
    const double logit = logit_of_bin(bin);
    const double rate = sigmoid(curve.offset + slope * logit);
    const double missing = accepted[bin] - tried[bin] * rate;
    const double weight = tried[bin] * rate * (1.0 - rate);
    by_offset += missing;
    by_slope += logit * missing;
    first += weight;
    cross += logit * weight;
    second += logit * logit * weight;
  }
  by_offset -= kOffsetPrecision * curve.offset;
  by_slope = slope * by_slope - kSlopePrecision * curve.log_slope;
  first += kOffsetPrecision;
  cross *= slope;
  second = slope * slope * second + kSlopePrecision;
  const double determinant = first * second - cross * cross;
  const double offset = (second * by_offset - cross * by_slope) / determinant;
  const double log_slope = (first * by_slope - cross * by_offset) / determinant;
  const double length = std::max(std::abs(offset), std::abs(log_slope));
  const double share = length > kLongestStep ? kLongestStep / length : 1.0;
  curve.offset += share * offset;
  curve.log_slope += share * log_slope;
}

// The nearest never decreasing values in weighted least squares: neighbours that fall are pooled.
void make_non_decreasing(double* values, const double* weights) {
  double means[kBins], sums[kBins];
  int ends[kBins], num_pools = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    double mean = values[bin], weight = weights[bin];
    while (num_pools > 0 && means[num_pools - 1] > mean) {
      --num_pools;
      mean = (mean * weight + means[num_pools] * sums[num_pools]) / (weight + sums[num_pools]);
      weight += sums[num_pools];
    }
    means[num_pools] = mean;
    sums[num_pools] = weight;
    ends[num_pools++] = bin + 1;
  }
  for (int pool = 0, bin = 0; pool < num_pools; ++pool) {
    while (bin < ends[pool]) values[bin++] = means[pool];
  }
}

// `believed` [32] corrected by one class's counts: they count for what they are, it for `weight`.
void correct(const double* tried, const double* accepted, double weight, double* believed) {
  double weights[kBins];
  for (int bin = 0; bin < kBins; ++bin) {
    believed[bin] = (accepted[bin] + weight * believed[bin]) / (tried[bin] + weight);
    weights[bin] = tried[bin] + 1.0;
  }
  make_non_decreasing(believed, weights);
}

// Rates [32] of one class; refits the curve, from where it was.
void fit_bins(const double* tried, const double* accepted, AcceptanceCurve& curve, double* rates) {
  for (int i = 0; i < kNewtonSteps; ++i) step_curve(tried, accepted, curve);
  const double slope = std::exp(curve.log_slope);
  for (int bin = 0; bin < kBins; ++bin) {
    rates[bin] = sigmoid(curve.offset + slope * logit_of_bin(bin));
  }
  correct(tried, accepted, kCurveWeight, rates);
}

void write_class(const double* believed, int rank_class, float* rates) {
  for (int bin = 0; bin < kBins; ++bin) {
    rates[rank_class * kBins + bin] = static_cast<float>(believed[bin]);
  }
}

// Rates [8, 32] that do not ask for the rank.
void fit_pooled(const double* tried, const double* accepted, AcceptanceCurve& curve, float* rates) {
  double all_tried[kBins] = {}, all_accepted[kBins] = {}, believed[kBins];
  for (int cell = 0; cell < kCells; ++cell) {
    all_tried[cell % kBins] += tried[cell];
    all_accepted[cell % kBins] += accepted[cell];
  }
  fit_bins(all_tried, all_accepted, curve, believed);
  for (int rank = 0; rank < kCalibrationClasses; ++rank) write_class(believed, rank, rates);
}

// Rates [8, 32], each class like the one before it at a level of its own until its counts say
// otherwise.
void fit_ranks(const double* tried, const double* accepted, AcceptanceCurve& curve, float* rates) {
  double believed[kBins];
  fit_bins(tried, accepted, curve, believed);
  write_class(believed, 0, rates);
  for (int rank = 1; rank < kCalibrationClasses; ++rank) {
    const double* seen = tried + rank * kBins;
    const double* came_true = accepted + rank * kBins;
    double num_seen = 0.0, num_true = kLevelWeight, expected = kLevelWeight;
    for (int bin = 0; bin < kBins; ++bin) {
      num_seen += seen[bin];
      num_true += came_true[bin];
      expected += seen[bin] * believed[bin];
    }
    if (num_seen > 0.0) {
      const double level = num_true / expected;
      for (double& rate : believed) rate = std::min(rate * level, 1.0);
      correct(seen, came_true, kClassWeight, believed);
    }
    write_class(believed, rank, rates);
  }
}

// Takes what was counted in a slot since the last time for its kind's; counters may wrap around.
void collect(const AcceptanceTables& a, int slot) {
  for (int what = 0; what < 2; ++what) {
    const int32_t* count = a.counts[what] + slot * kCells;
    int32_t* counted = a.counted + (what * a.num_slots + slot) * kCells;
    int64_t* added = a.added + (a.kinds[slot] * 2 + what) * kCells;
    for (int cell = 0; cell < kCells; ++cell) {
      const uint32_t now = static_cast<uint32_t>(count[cell]);
      added[cell] += static_cast<int32_t>(now - static_cast<uint32_t>(counted[cell]));
      counted[cell] = count[cell];
    }
  }
}

// Moves what was added of a kind to what was seen; returns whether it was anything.
bool add_up(const AcceptanceTables& a, int kind, double kept) {
  int64_t* added = a.added + kind * 2 * kCells;
  double* seen = a.seen + kind * 2 * kCells;
  if (std::all_of(added, added + 2 * kCells, [](int64_t n) { return n == 0; })) return false;
  for (int cell = 0; cell < 2 * kCells; ++cell) {
    seen[cell] = seen[cell] * kept + static_cast<double>(added[cell]);
    added[cell] = 0;
  }
  return true;
}

}  // namespace

void refresh_acceptance(const AcceptanceTables& a, double kept) {
  for (int slot = 0; slot < a.num_slots; ++slot) collect(a, slot);
  for (int kind = 0; kind < kRequestKinds; ++kind) {
    if (!add_up(a, kind, kept)) continue;
    const double* tried = a.seen + kind * 2 * kCells;
    const auto fit = kind == 1 && a.by_rank ? fit_ranks : fit_pooled;
    fit(tried, tried + kCells, a.curves[kind], a.rates + kind * kCells);
  }
  for (int slot = 0; slot < a.num_slots; ++slot) {
    std::memcpy(a.tables + slot * kCells, a.rates + a.kinds[slot] * kCells, kCells * sizeof(float));
  }
}

}  // namespace sdengine
