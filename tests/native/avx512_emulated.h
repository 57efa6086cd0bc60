// AVX-512 intrinsics for machines without them: SIMDe under the native names, and the few it lacks.
//
// To be force-included before csrc/cpu/vec.h with -DSDENGINE_SIMDE.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/number_format.h"

namespace avx512_emulated {

template <class T>
struct Lanes {
  T lane[16];
};

template <class To, class From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Applies `f` to sixteen lanes of type In and packs the results.
template <class Result, class In, class Vector, class F>
Result map_lanes(const Vector& a, F f) {
  const auto in = as<Lanes<In>>(a);
  Lanes<decltype(f(in.lane[0]))> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = f(in.lane[i]);
  return as<Result>(out);
}

template <class Vector, class T>
Vector load_masked(uint32_t mask, const void* from) {
  Lanes<T> lanes{};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes.lane[i] = static_cast<const T*>(from)[i];
  }
  return as<Vector>(lanes);
}

template <class T, class Vector>
void store_masked(void* to, uint32_t mask, const Vector& a) {
  const auto lanes = as<Lanes<T>>(a);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) static_cast<T*>(to)[i] = lanes.lane[i];
  }
}

inline int32_t to_int(float x) {
  return std::fabs(x) < 2147483648.0f ? static_cast<int32_t>(x) : INT32_MIN;  // NaN too
}

inline __m512 scalef(const __m512& a, const __m512& exponents) {
  auto lanes = as<Lanes<float>>(a);
  const auto n = as<Lanes<float>>(exponents);
  for (int i = 0; i < 16; ++i) lanes.lane[i] = std::scalbn(lanes.lane[i], to_int(n.lane[i]));
  return as<__m512>(lanes);
}

}  // namespace avx512_emulated

// SIMDe multiplies by 2^n, which overflows before the product does.
#undef _mm512_scalef_ps
#define _mm512_scalef_ps(a, n) avx512_emulated::scalef(a, n)
#define _mm512_maskz_loadu_ps(m, p) avx512_emulated::load_masked<__m512, float>(m, p)
#define _mm512_maskz_loadu_epi32(m, p) avx512_emulated::load_masked<__m512i, int32_t>(m, p)
#define _mm512_mask_storeu_ps(p, m, a) avx512_emulated::store_masked<float>(p, m, a)
#define _mm512_mask_storeu_epi32(p, m, a) avx512_emulated::store_masked<int32_t>(p, m, a)
#define _mm512_cvtepi32_ps(a) \
  avx512_emulated::map_lanes<__m512, int32_t>(a, [](int32_t x) { return static_cast<float>(x); })
#define _mm512_cvtps_epi32(a)                 \
  avx512_emulated::map_lanes<__m512i, float>( \
      a, [](float x) { return avx512_emulated::to_int(std::nearbyintf(x)); })
#define _mm512_cvttps_epi32(a) \
  avx512_emulated::map_lanes<__m512i, float>(a, [](float x) { return avx512_emulated::to_int(x); })
#define _mm512_cvtepu16_epi32(a) \
  avx512_emulated::map_lanes<__m512i, uint16_t>(a, [](uint16_t x) { return int32_t{x}; })
#define _mm512_cvtepi32_epi16(a)                  \
  avx512_emulated::map_lanes<__m256i, int32_t>(a, \
                                               [](int32_t x) { return static_cast<uint16_t>(x); })
#define _mm512_cvtph_ps(a)                      \
  avx512_emulated::map_lanes<__m512, uint16_t>( \
      a, [](uint16_t x) { return sdengine::half_to_float({x}); })
#define _mm512_cvtps_ph(a, rounding)          \
  avx512_emulated::map_lanes<__m256i, float>( \
      a, [](float x) { return sdengine::float_to_half(x).bits; })
#define _mm512_srai_epi32(a, n) \
  avx512_emulated::map_lanes<__m512i, int32_t>(a, [](int32_t x) { return x >> (n); })
