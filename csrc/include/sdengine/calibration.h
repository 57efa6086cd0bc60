// Calibrated acceptance: raw draft estimates in [0, 1] are sorted into 32 bins, and a child's rank
// among its siblings into 8 classes. Acceptance is counted per class and bin, and a table [8, 32]
// of acceptance rates corrects later estimates.
//
// Bins are half octaves of the distance to the nearer end: bin 0 is [0, 1.5 * 2^-9), bins 1..15
// reach 1/2, bins 16..31 mirror them up to 1. Found from the float's exponent bits, so every
// machine agrees on them. Classes are ranks 0, 1, 2, 3, 4-5, 6-7, 8-11, 12 and later: a draw that
// comes after many rejected ones is accepted less often than its share of what is left says.
#pragma once

#include <cstdint>
#include <cstring>

#include "sdengine/hd.h"

namespace sdengine {

constexpr int kCalibrationBins = 32;
constexpr int kCalibrationClasses = 8;
constexpr int kCalibrationCells = kCalibrationClasses * kCalibrationBins;

// Class of a child's rank among its siblings, 0 for the first.
SDE_HD inline int calibration_class(int32_t rank) {
  if (rank < 4) return rank < 0 ? 0 : rank;
  return rank < 8 ? 2 + rank / 2 : (rank < 12 ? 6 : 7);
}

// Lower edge of the i-th half octave below 1/2: 0, 1.5 * 2^-9, 2^-8, 1.5 * 2^-8, ..., 1.5 * 2^-2,
// and 1/2 for i = 16.
SDE_HD inline float calibration_half_edge(int i) {
  if (i == 0) return 0.0f;
  const uint32_t bits = static_cast<uint32_t>(2 * (127 - 9) + i) << 22;
  float edge;
  std::memcpy(&edge, &bits, sizeof(edge));
  return edge;
}

// Bin of an estimate; NaN and values below 0 go to bin 0, values above 1 to bin 31.
SDE_HD inline int calibration_bin(float estimate) {
  if (!(estimate > 0.0f)) return 0;
  if (estimate >= 1.0f) return kCalibrationBins - 1;
  const bool is_upper = estimate >= 0.5f;
  const float distance = is_upper ? 1.0f - estimate : estimate;
  uint32_t bits;
  std::memcpy(&bits, &distance, sizeof(bits));
  // Bins are closed below, so the mirrored ones are closed at the larger distance: one unit less
  // decides.
  if (is_upper) bits -= 1;
  int half = static_cast<int>(bits >> 22) - 2 * (127 - 9);
  half = half < 0 ? 0 : (half > 15 ? 15 : half);
  return is_upper ? kCalibrationBins - 1 - half : half;
}

// Middle of a bin; a table holding the centers leaves estimates as they are.
SDE_HD inline float calibration_center(int bin) {
  const int half = bin < 16 ? bin : kCalibrationBins - 1 - bin;
  const float middle = 0.5f * (calibration_half_edge(half) + calibration_half_edge(half + 1));
  return bin < 16 ? middle : 1.0f - middle;
}

// The acceptance rate that `table` (rates at the 32 centers) gives an estimate: linear between
// centers, through (0, 0) below the first, parallel to the diagonal above the last, and within [0,
// 1]. So estimates of one bin keep their order.
SDE_HD inline float calibrated(float estimate, const float* table) {
  if (!(estimate > 0.0f)) return 0.0f;
  const float e = estimate < 1.0f ? estimate : 1.0f;
  int left = calibration_bin(e);
  if (e < calibration_center(left)) --left;
  float value;
  if (left < 0) {
    value = table[0] * (e / calibration_center(0));
  } else if (left == kCalibrationBins - 1) {
    value = table[left] + (e - calibration_center(left));
  } else {
    const float x0 = calibration_center(left);
    const float x1 = calibration_center(left + 1);
    value = table[left] + (table[left + 1] - table[left]) * ((e - x0) / (x1 - x0));
  }
  return value < 0.0f ? 0.0f : (value > 1.0f ? 1.0f : value);
}

}  // namespace sdengine
