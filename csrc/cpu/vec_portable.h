// Four lanes of compiler vectors (SSE2, NEON or whatever the baseline has). Included by vec.h only,
// which documents every function. Without fused multiply-add: emulating it costs far more than the
// half ulp it saves.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sdengine {
inline namespace isa_portable {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Uint4 __attribute__((vector_size(16)));

struct Vec {
  static constexpr int kLanes = 4;
  Float4 v;
};
struct IntVec {
  static constexpr int kLanes = 4;
  Int4 v;
};
struct Mask {
  Int4 v;  // all ones or all zeros per lane
};

template <class To, class From>
SDE_INLINE To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <class T, class P>
SDE_INLINE T load_lanes(const P* p, int n) {
  T a = {};
  for (int i = 0; i < n; ++i) a[i] = p[i];
  return a;
}
template <class T, class P>
SDE_INLINE void store_lanes(P* p, T a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a[i];
}

SDE_INLINE Vec broadcast(float x) { return {Float4{x, x, x, x}}; }
SDE_INLINE Vec load(const float* p) {
  Vec a;
  std::memcpy(&a.v, p, sizeof(a.v));
  return a;
}
SDE_INLINE void store(float* p, Vec a) { std::memcpy(p, &a.v, sizeof(a.v)); }
SDE_INLINE Vec load_partial(const float* p, int n) { return {load_lanes<Float4>(p, n)}; }
SDE_INLINE void store_partial(float* p, Vec a, int n) { store_lanes(p, a.v, n); }

SDE_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
SDE_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
SDE_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
SDE_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
SDE_INLINE Vec operator-(Vec a) { return {-a.v}; }
SDE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
SDE_INLINE Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
SDE_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
SDE_INLINE Vec sqrt(Vec a) {
  for (int i = 0; i < 4; ++i) a.v[i] = std::sqrt(a.v[i]);
  return a;
}

SDE_INLINE IntVec broadcast_int(int32_t x) { return {Int4{x, x, x, x}}; }
SDE_INLINE IntVec iota() { return {Int4{0, 1, 2, 3}}; }
SDE_INLINE IntVec load_int(const int32_t* p) {
  IntVec a;
  std::memcpy(&a.v, p, sizeof(a.v));
  return a;
}
SDE_INLINE void store_int(int32_t* p, IntVec a) { std::memcpy(p, &a.v, sizeof(a.v)); }
SDE_INLINE IntVec load_int_partial(const int32_t* p, int n) { return {load_lanes<Int4>(p, n)}; }
SDE_INLINE void store_int_partial(int32_t* p, IntVec a, int n) { store_lanes(p, a.v, n); }

SDE_INLINE IntVec wrap(Uint4 a) { return {reinterpret<Int4>(a)}; }
SDE_INLINE Uint4 raw(IntVec a) { return reinterpret<Uint4>(a.v); }
SDE_INLINE IntVec operator+(IntVec a, IntVec b) { return wrap(raw(a) + raw(b)); }
SDE_INLINE IntVec operator-(IntVec a, IntVec b) { return wrap(raw(a) - raw(b)); }
SDE_INLINE IntVec operator*(IntVec a, IntVec b) { return wrap(raw(a) * raw(b)); }
SDE_INLINE IntVec operator^(IntVec a, IntVec b) { return {a.v ^ b.v}; }
SDE_INLINE IntVec operator&(IntVec a, IntVec b) { return {a.v & b.v}; }
SDE_INLINE IntVec operator|(IntVec a, IntVec b) { return {a.v | b.v}; }
template <int kBits>
SDE_INLINE IntVec shift_left(IntVec a) {
  return wrap(raw(a) << kBits);
}
template <int kBits>
SDE_INLINE IntVec shift_right_logical(IntVec a) {
  return wrap(raw(a) >> kBits);
}
template <int kBits>
SDE_INLINE IntVec shift_right_arithmetic(IntVec a) {
  return {a.v >> kBits};
}
SDE_INLINE void mul_high_low(IntVec a, IntVec b, IntVec* high, IntVec* low) {
  const Uint4 x = raw(a);
  const Uint4 y = raw(b);
  Uint4 upper, lower;
  for (int i = 0; i < 4; ++i) {
    const uint64_t product = uint64_t{x[i]} * y[i];
    upper[i] = static_cast<uint32_t>(product >> 32);
    lower[i] = static_cast<uint32_t>(product);
  }
  *high = wrap(upper);
  *low = wrap(lower);
}

SDE_INLINE IntVec bits_of(Vec a) { return {reinterpret<Int4>(a.v)}; }
SDE_INLINE Vec from_bits(IntVec a) { return {reinterpret<Float4>(a.v)}; }
SDE_INLINE Vec abs(Vec a) { return from_bits(bits_of(a) & broadcast_int(0x7fffffff)); }
SDE_INLINE Vec to_float(IntVec a) { return {__builtin_convertvector(a.v, Float4)}; }
SDE_INLINE IntVec truncate_to_int(Vec a) { return {__builtin_convertvector(a.v, Int4)}; }

SDE_INLINE Mask less(Vec a, Vec b) { return {a.v < b.v}; }
SDE_INLINE Mask less_equal(Vec a, Vec b) { return {a.v <= b.v}; }
SDE_INLINE Mask equal(Vec a, Vec b) { return {a.v == b.v}; }
SDE_INLINE Mask is_nan(Vec a) { return {a.v != a.v}; }
SDE_INLINE Mask less(IntVec a, IntVec b) { return {a.v < b.v}; }
SDE_INLINE Mask equal(IntVec a, IntVec b) { return {a.v == b.v}; }
SDE_INLINE Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
SDE_INLINE Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
SDE_INLINE Mask operator~(Mask a) { return {~a.v}; }
SDE_INLINE Mask first_lanes(int n) { return less(iota(), broadcast_int(n)); }
SDE_INLINE uint32_t bits_of(Mask a) {
  return (a.v[0] & 1u) | (a.v[1] & 2u) | (a.v[2] & 4u) | (a.v[3] & 8u);
}
SDE_INLINE Vec select(Mask m, Vec a, Vec b) { return {m.v ? a.v : b.v}; }
SDE_INLINE IntVec select(Mask m, IntVec a, IntVec b) { return {m.v ? a.v : b.v}; }

// Adding 1.5 * 2^23 leaves no room for a fraction; beyond 2^22 a float of interest is integral
// already.
SDE_INLINE Vec round(Vec a) {
  const Vec magic = broadcast(12582912.0f);
  const Vec rounded = (a + magic) - magic;
  return select(less(abs(a), broadcast(4194304.0f)), rounded, a);
}
SDE_INLINE IntVec round_to_int(Vec a) { return truncate_to_int(round(a)); }
SDE_INLINE Vec unsigned_to_float(IntVec a) {
  // Both halves convert exactly, so the one rounding is that of the sum: correctly rounded.
  const Vec high = to_float(shift_right_logical<16>(a));
  const Vec low = to_float(a & broadcast_int(0xffff));
  return high * broadcast(65536.0f) + low;
}

SDE_INLINE float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
SDE_INLINE float max_lane(Vec a) {
  const float even = a.v[0] > a.v[2] ? a.v[0] : a.v[2];
  const float odd = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return even > odd ? even : odd;
}

SDE_INLINE Vec load_bf16(const uint16_t* p) {
  return from_bits(shift_left<16>(IntVec{Int4{p[0], p[1], p[2], p[3]}}));
}
SDE_INLINE void store_bf16(uint16_t* p, Vec a) {
  const IntVec bits = bits_of(a);
  const IntVec odd = shift_right_logical<16>(bits) & broadcast_int(1);
  const IntVec rounded = bits + odd + broadcast_int(0x7fff);
  const IntVec quiet = bits | broadcast_int(0x400000);
  const IntVec wide = shift_right_logical<16>(select(is_nan(a), quiet, rounded));
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint16_t>(wide.v[i]);
}

SDE_INLINE Vec load_half(const Half* p) {
  Vec a;
  for (int i = 0; i < 4; ++i) a.v[i] = half_to_float(p[i]);
  return a;
}
SDE_INLINE void store_half(Half* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_half(a.v[i]);
}

// 2^n * a for integral lanes n in [-252, 254]; one rounding, also into the subnormal range.
SDE_INLINE Vec scale_by_power(Vec a, Vec n) {
  const IntVec whole = truncate_to_int(n);
  const IntVec half = shift_right_arithmetic<1>(whole);
  const IntVec bias = broadcast_int(127);
  const Vec first = from_bits(shift_left<23>(half + bias));
  const Vec second = from_bits(shift_left<23>(whole - half + bias));
  return a * first * second;
}

}  // namespace isa_portable
}  // namespace sdengine
