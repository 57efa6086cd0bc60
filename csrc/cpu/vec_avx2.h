// Eight lanes on AVX2 + FMA. Included by vec.h only, which documents every function.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sdengine {
inline namespace isa_avx2 {

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};
struct IntVec {
  static constexpr int kLanes = 8;
  __m256i v;
};
struct Mask {
  __m256 v;  // all ones or all zeros per lane
};

alignas(64) static constexpr int32_t kLaneTable[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

SDE_INLINE __m256i lanes_below(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneTable + 8 - n));
}

SDE_INLINE Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
SDE_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
SDE_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
SDE_INLINE Vec load_partial(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(n))};
}
SDE_INLINE void store_partial(float* p, Vec a, int n) {
  _mm256_maskstore_ps(p, lanes_below(n), a.v);
}

SDE_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
SDE_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
SDE_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
SDE_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
SDE_INLINE Vec operator-(Vec a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
SDE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
SDE_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
SDE_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
SDE_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
SDE_INLINE Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
SDE_INLINE Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

SDE_INLINE IntVec broadcast_int(int32_t x) { return {_mm256_set1_epi32(x)}; }
SDE_INLINE IntVec iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
SDE_INLINE IntVec load_int(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
SDE_INLINE void store_int(int32_t* p, IntVec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
SDE_INLINE IntVec load_int_partial(const int32_t* p, int n) {
  return {_mm256_maskload_epi32(p, lanes_below(n))};
}
SDE_INLINE void store_int_partial(int32_t* p, IntVec a, int n) {
  _mm256_maskstore_epi32(p, lanes_below(n), a.v);
}
SDE_INLINE IntVec operator+(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
SDE_INLINE IntVec operator-(IntVec a, IntVec b) { return {_mm256_sub_epi32(a.v, b.v)}; }
SDE_INLINE IntVec operator*(IntVec a, IntVec b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
SDE_INLINE IntVec operator^(IntVec a, IntVec b) { return {_mm256_xor_si256(a.v, b.v)}; }
SDE_INLINE IntVec operator&(IntVec a, IntVec b) { return {_mm256_and_si256(a.v, b.v)}; }
SDE_INLINE IntVec operator|(IntVec a, IntVec b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int kBits>
SDE_INLINE IntVec shift_left(IntVec a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
SDE_INLINE IntVec shift_right_logical(IntVec a) {
  return {_mm256_srli_epi32(a.v, kBits)};
}
template <int kBits>
SDE_INLINE IntVec shift_right_arithmetic(IntVec a) {
  return {_mm256_srai_epi32(a.v, kBits)};
}
SDE_INLINE void mul_high_low(IntVec a, IntVec b, IntVec* high, IntVec* low) {
  const __m256i even = _mm256_mul_epu32(a.v, b.v);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), _mm256_srli_epi64(b.v, 32));
  low->v = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  high->v = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}

SDE_INLINE IntVec bits_of(Vec a) { return {_mm256_castps_si256(a.v)}; }
SDE_INLINE Vec from_bits(IntVec a) { return {_mm256_castsi256_ps(a.v)}; }
SDE_INLINE Vec to_float(IntVec a) { return {_mm256_cvtepi32_ps(a.v)}; }
SDE_INLINE IntVec round_to_int(Vec a) { return {_mm256_cvtps_epi32(a.v)}; }
SDE_INLINE IntVec truncate_to_int(Vec a) { return {_mm256_cvttps_epi32(a.v)}; }
SDE_INLINE Vec unsigned_to_float(IntVec a) {
  // Both halves convert exactly, so the one rounding is that of the sum: correctly rounded.
  const Vec high = to_float(shift_right_logical<16>(a));
  const Vec low = to_float(a & broadcast_int(0xffff));
  return high * broadcast(65536.0f) + low;
}

SDE_INLINE Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
SDE_INLINE Mask less_equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
SDE_INLINE Mask equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
SDE_INLINE Mask is_nan(Vec a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
SDE_INLINE Mask less(IntVec a, IntVec b) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.v, a.v))};
}
SDE_INLINE Mask equal(IntVec a, IntVec b) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))};
}
SDE_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
SDE_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
SDE_INLINE Mask operator~(Mask a) {
  return {_mm256_xor_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
}
SDE_INLINE Mask first_lanes(int n) { return {_mm256_castsi256_ps(lanes_below(n))}; }
SDE_INLINE uint32_t bits_of(Mask a) { return static_cast<uint32_t>(_mm256_movemask_ps(a.v)); }
SDE_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
SDE_INLINE IntVec select(Mask m, IntVec a, IntVec b) {
  return {_mm256_blendv_epi8(b.v, a.v, _mm256_castps_si256(m.v))};
}

SDE_INLINE float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
SDE_INLINE float max_lane(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

SDE_INLINE Vec load_bf16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
SDE_INLINE void store_bf16(uint16_t* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(is_nan(a).v);
  const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

SDE_INLINE Vec load_half(const Half* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SDE_INLINE void store_half(Half* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// 2^n * a for integral lanes n in [-252, 254]; one rounding, also into the subnormal range.
SDE_INLINE Vec scale_by_power(Vec a, Vec n) {
  const IntVec whole = round_to_int(n);
  const IntVec half = shift_right_arithmetic<1>(whole);
  const IntVec bias = broadcast_int(127);
  const Vec first = from_bits(shift_left<23>(half + bias));
  const Vec second = from_bits(shift_left<23>(whole - half + bias));
  return a * first * second;
}

}  // namespace isa_avx2
}  // namespace sdengine
