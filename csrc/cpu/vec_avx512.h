// Sixteen lanes on AVX-512 F + BW + VL + DQ. Included by vec.h only, which documents every
// function.
#pragma once

#if !defined(SDENGINE_SIMDE)  // a test harness may bring emulated intrinsics of the same names
// The "undefined" operands in GCC 12's own header trip -Wmaybe-uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include <cstdint>
#include <cstring>

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};
struct IntVec {
  static constexpr int kLanes = 16;
  __m512i v;
};
struct Mask {
  __mmask16 v;
};

SDE_INLINE __mmask16 lanes_below(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

SDE_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
SDE_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
SDE_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
SDE_INLINE Vec load_partial(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(lanes_below(n), p)};
}
SDE_INLINE void store_partial(float* p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, lanes_below(n), a.v);
}

SDE_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
SDE_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
SDE_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
SDE_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
SDE_INLINE Vec operator-(Vec a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
SDE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SDE_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
SDE_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
SDE_INLINE Vec abs(Vec a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
SDE_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
SDE_INLINE Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, 0)}; }

SDE_INLINE IntVec broadcast_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
SDE_INLINE IntVec iota() {
  return {_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)};
}
SDE_INLINE IntVec load_int(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
SDE_INLINE void store_int(int32_t* p, IntVec a) { _mm512_storeu_si512(p, a.v); }
SDE_INLINE IntVec load_int_partial(const int32_t* p, int n) {
  return {_mm512_maskz_loadu_epi32(lanes_below(n), p)};
}
SDE_INLINE void store_int_partial(int32_t* p, IntVec a, int n) {
  _mm512_mask_storeu_epi32(p, lanes_below(n), a.v);
}
SDE_INLINE IntVec operator+(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
SDE_INLINE IntVec operator-(IntVec a, IntVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
SDE_INLINE IntVec operator*(IntVec a, IntVec b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
SDE_INLINE IntVec operator^(IntVec a, IntVec b) { return {_mm512_xor_si512(a.v, b.v)}; }
SDE_INLINE IntVec operator&(IntVec a, IntVec b) { return {_mm512_and_si512(a.v, b.v)}; }
SDE_INLINE IntVec operator|(IntVec a, IntVec b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kBits>
SDE_INLINE IntVec shift_left(IntVec a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
SDE_INLINE IntVec shift_right_logical(IntVec a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
template <int kBits>
SDE_INLINE IntVec shift_right_arithmetic(IntVec a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
SDE_INLINE void mul_high_low(IntVec a, IntVec b, IntVec* high, IntVec* low) {
  const __m512i even = _mm512_mul_epu32(a.v, b.v);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32));
  low->v = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  high->v = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}

SDE_INLINE IntVec bits_of(Vec a) { return {_mm512_castps_si512(a.v)}; }
SDE_INLINE Vec from_bits(IntVec a) { return {_mm512_castsi512_ps(a.v)}; }
SDE_INLINE Vec to_float(IntVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
SDE_INLINE IntVec round_to_int(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }
SDE_INLINE IntVec truncate_to_int(Vec a) { return {_mm512_cvttps_epi32(a.v)}; }
SDE_INLINE Vec unsigned_to_float(IntVec a) {
  // Both halves convert exactly, so the one rounding is that of the sum: correctly rounded.
  const Vec high = to_float(shift_right_logical<16>(a));
  const Vec low = to_float(a & broadcast_int(0xffff));
  return high * broadcast(65536.0f) + low;
}

SDE_INLINE Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
SDE_INLINE Mask less_equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
SDE_INLINE Mask equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
SDE_INLINE Mask is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
SDE_INLINE Mask less(IntVec a, IntVec b) { return {_mm512_cmpgt_epi32_mask(b.v, a.v)}; }
SDE_INLINE Mask equal(IntVec a, IntVec b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
SDE_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
SDE_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
SDE_INLINE Mask operator~(Mask a) { return {static_cast<__mmask16>(~a.v)}; }
SDE_INLINE Mask first_lanes(int n) { return {lanes_below(n)}; }
SDE_INLINE uint32_t bits_of(Mask a) { return a.v; }
SDE_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
SDE_INLINE IntVec select(Mask m, IntVec a, IntVec b) {
  return {_mm512_mask_blend_epi32(m.v, b.v, a.v)};
}

SDE_INLINE __m256 upper_half(__m512 a) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}
SDE_INLINE float sum(Vec a) {
  const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
SDE_INLINE float max_lane(Vec a) {
  const __m256 y = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

SDE_INLINE Vec load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
// In integers: the bf16 conversion instruction flushes subnormals, which would differ from every
// other backend.
SDE_INLINE void store_bf16(uint16_t* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i wide = _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan(a).v, rounded, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(wide));
}

SDE_INLINE Vec load_half(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SDE_INLINE void store_half(Half* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// 2^n * a for integral lanes n; one rounding, also into the subnormal range.
SDE_INLINE Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
