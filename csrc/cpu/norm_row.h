// RMS norm of one row: shared by rms_norm, linear (hidden states) and rope_kv_append (heads).
#pragma once

#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

// Four accumulators in a fixed order, folded pairwise: the sum depends on the row and its width
// alone.
SDE_INLINE float sum_of_squares(const float* x, int64_t width) {
  Vec total[4] = {zeros(), zeros(), zeros(), zeros()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const Vec a = load(x + i + j * kLanes);
      total[j] = fma(a, a, total[j]);
    }
  }
  for (; i + kLanes <= width; i += kLanes) {
    const Vec a = load(x + i);
    total[0] = fma(a, a, total[0]);
  }
  if (i < width) {
    const Vec a = load_partial(x + i, static_cast<int>(width - i));
    total[1] = fma(a, a, total[1]);
  }
  return sum((total[0] + total[2]) + (total[1] + total[3]));
}

// 1 / rms(x).
SDE_INLINE Vec norm_scale(const float* x, int64_t width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  return broadcast(1.0f / __builtin_sqrtf(mean + eps));
}

// out = x / rms(x) * weight; out may be x.
SDE_INLINE void norm_row(const float* x, const float* weight, float* out, int64_t width,
                         float eps) {
  const Vec scale = norm_scale(x, width, eps);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  if (i < width) {
    const int n = static_cast<int>(width - i);
    store_partial(out + i, load_partial(x + i, n) * scale * load_partial(weight + i, n), n);
  }
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
