// Eight rows of eight numbers, as floats or as four pairs of bf16, to columns.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

// Rows wherever they lie.
template <class T>
struct RowPointers {
  using Element = T;
  const T* const* rows;

  SDE_INLINE const T* operator[](int64_t row) const { return rows[row]; }
};

// Rows `stride` elements apart: their addresses need no look-up.
template <class T>
struct NeighbourRows {
  using Element = T;
  const T* first;
  int64_t stride;

  SDE_INLINE const T* operator[](int64_t row) const { return first + row * stride; }
};

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
template <class Rows>
SDE_INLINE void transpose_8x4(Rows rows, int64_t offset, __m256 columns[4]) {
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

// out[d * stride + r] = rows[r][offset + d] for r, d < 8; of bf16, which stay together as the bits
// of a float, out[p * stride + r] = elements 2 p (lower half) and 2 p + 1 of rows[r] + offset for p
// < 4.
template <class Rows>
SDE_INLINE void transpose_8x8(Rows rows, int64_t offset, float* out, int64_t stride) {
  constexpr int kColumns = std::is_same_v<typename Rows::Element, uint16_t> ? 4 : 8;
  for (int first = 0; first < kColumns; first += 4) {
    __m256 columns[4];
    transpose_8x4(rows, offset + first, columns);
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out + (first + i) * stride, columns[i]);
  }
}

#else

SDE_INLINE float as_float(const float* p) { return *p; }
SDE_INLINE float as_float(const Half* p) { return half_to_float(*p); }
SDE_INLINE float as_float(const uint16_t* pair) {
  float bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return bits;
}

// The same.
template <class Rows>
SDE_INLINE void transpose_8x8(Rows rows, int64_t offset, float* out, int64_t stride) {
  constexpr int kDims = std::is_same_v<typename Rows::Element, uint16_t> ? 2 : 1;
  for (int column = 0; column < 8 / kDims; ++column) {
    for (int r = 0; r < 8; ++r) {
      out[column * stride + r] = as_float(rows[r] + offset + column * kDims);
    }
  }
}

#endif

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
