// Eight rows of eight numbers, as floats or as four pairs of bf16, to columns.
#pragma once

#include <cstring>

#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

#if defined(__AVX2__)

// 16 bytes of two rows: row a in the lower half, row b in the upper.
template <class T>
SDE_INLINE __m256 load_pair(const T* a, const T* b) {
  const __m128 low = _mm_loadu_ps(reinterpret_cast<const float*>(a));
  const __m128 high = _mm_loadu_ps(reinterpret_cast<const float*>(b));
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}

// The same for four elements of float16, widened.
SDE_INLINE __m256 load_pair(const Half* a, const Half* b) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(a));
  const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b));
  return _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
}

// columns[d] = 32-bit element d of rows 0..7, for d < 4.
template <class T>
SDE_INLINE void transpose_8x4(const T* const* rows, int64_t offset, __m256 columns[4]) {
  const __m256 a = load_pair(rows[0] + offset, rows[4] + offset);
  const __m256 b = load_pair(rows[1] + offset, rows[5] + offset);
  const __m256 c = load_pair(rows[2] + offset, rows[6] + offset);
  const __m256 d = load_pair(rows[3] + offset, rows[7] + offset);
  const __m256 ab_low = _mm256_unpacklo_ps(a, b);
  const __m256 ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d);
  const __m256 cd_high = _mm256_unpackhi_ps(c, d);
  columns[0] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
  columns[1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
  columns[2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
  columns[3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}

// out[d * stride + r] = rows[r][offset + d] for r, d < 8.
template <class T>
SDE_INLINE void transpose_8x8(const T* const* rows, int64_t offset, float* out, int64_t stride) {
  for (int half = 0; half < 2; ++half) {
    __m256 columns[4];
    transpose_8x4(rows, offset + 4 * half, columns);
    for (int d = 0; d < 4; ++d) _mm256_storeu_ps(out + (4 * half + d) * stride, columns[d]);
  }
}

// out[p * stride + r] = elements 2 p (lower half) and 2 p + 1 of rows[r] + offset, for p < 4, r <
// 8: pairs stay together, as the bits of a float.
SDE_INLINE void transpose_8x8(const uint16_t* const* rows, int64_t offset, float* out,
                              int64_t stride) {
  __m256 columns[4];
  transpose_8x4(rows, offset, columns);
  for (int p = 0; p < 4; ++p) _mm256_storeu_ps(out + p * stride, columns[p]);
}

#else

SDE_INLINE float as_float(float element) { return element; }
SDE_INLINE float as_float(Half element) { return half_to_float(element); }

// out[d * stride + r] = rows[r][offset + d] for r, d < 8.
template <class T>
SDE_INLINE void transpose_8x8(const T* const* rows, int64_t offset, float* out, int64_t stride) {
  for (int d = 0; d < 8; ++d) {
    for (int r = 0; r < 8; ++r) out[d * stride + r] = as_float(rows[r][offset + d]);
  }
}

// The same for pairs of bf16, see above.
SDE_INLINE void transpose_8x8(const uint16_t* const* rows, int64_t offset, float* out,
                              int64_t stride) {
  for (int p = 0; p < 4; ++p) {
    for (int r = 0; r < 8; ++r) {
      std::memcpy(out + p * stride + r, rows[r] + offset + 2 * p, sizeof(float));
    }
  }
}

#endif

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
