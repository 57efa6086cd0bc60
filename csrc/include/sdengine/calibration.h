// Calibrated acceptance: a table of 32 values over the logit of the raw estimate.
//
// The logit is approximated with the bits of a float, two bins an octave from 2^-9 to 1 - 2^-9. That is piecewise linear,
// monotone, symmetric about 1/2, costs three integer operations, and gives the same bits on every device (a library
// logarithm would not).
#pragma once

#include <cstdint>
#include <cstring>

#include "sdengine/hd.h"

namespace sdengine {

constexpr int kCalibrationBins = 32;

// Position of an estimate on the table's axis, in bins; 16 at 1/2. NaN lands at 0.
SDE_HD inline float calibration_position(float estimate) {
  const bool upper = estimate > 0.5f;
  float tail = upper ? 1.0f - estimate : estimate;
  if (!(tail > 0.0f)) tail = 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &tail, sizeof bits);
  // Exponent and mantissa read as a fixed-point log2, 2^-23 units; 2^-1 maps to 0.
  const float octaves = static_cast<float>(static_cast<int32_t>(bits) - (126 << 23)) * (1.0f / (1 << 23));
  const float offset = 2.0f * octaves;
  const float position = upper ? 16.0f - offset : 16.0f + offset;
  return position < 0.0f ? 0.0f : (position > 32.0f ? 32.0f : position);
}

// The bin whose counts an observation with this estimate belongs to.
SDE_HD inline int calibration_bin(float estimate) {
  const int bin = static_cast<int>(calibration_position(estimate));
  return bin < kCalibrationBins ? bin : kCalibrationBins - 1;
}

// The table's value at an estimate, linear between bin centres, clamped to [0, 1]; without a table the estimate itself.
SDE_HD inline float calibrate(const float* table, float estimate) {
  float value = estimate;
  if (table != nullptr) {
    float x = calibration_position(estimate) - 0.5f;
    x = x < 0.0f ? 0.0f : (x > 31.0f ? 31.0f : x);
    int low = static_cast<int>(x);
    if (low > kCalibrationBins - 2) low = kCalibrationBins - 2;
    value = table[low] + (x - static_cast<float>(low)) * (table[low + 1] - table[low]);
  }
  return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;
}

}  // namespace sdengine
