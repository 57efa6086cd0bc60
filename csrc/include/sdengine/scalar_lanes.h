// One lane: the part of the CPU's lane vocabulary (Vec, IntVec, Mask) that noise_lanes.inl speaks,
// on plain numbers.
//
// Arithmetic is rounded after every operation and never contracted, on the host by
// -ffp-contract=off and on the device by the _rn intrinsics: that is what makes noise the same bits
// everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#include "sdengine/hd.h"

namespace sdengine {
namespace scalar {

struct Vec {
  float v;
};
struct IntVec {
  int32_t v;
};
struct Mask {
  bool v;
};

SDE_HD inline Vec broadcast(float x) { return {x}; }
SDE_HD inline IntVec broadcast_int(int32_t x) { return {x}; }

#if defined(__CUDA_ARCH__)
SDE_HD inline Vec operator+(Vec a, Vec b) { return {__fadd_rn(a.v, b.v)}; }
SDE_HD inline Vec operator-(Vec a, Vec b) { return {__fsub_rn(a.v, b.v)}; }
SDE_HD inline Vec operator*(Vec a, Vec b) { return {__fmul_rn(a.v, b.v)}; }
#else
SDE_HD inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
SDE_HD inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
SDE_HD inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
#endif
SDE_HD inline Vec operator-(Vec a) { return {-a.v}; }

SDE_HD inline uint32_t raw(IntVec a) { return static_cast<uint32_t>(a.v); }
SDE_HD inline IntVec wrap(uint32_t bits) { return {static_cast<int32_t>(bits)}; }
SDE_HD inline IntVec operator+(IntVec a, IntVec b) { return wrap(raw(a) + raw(b)); }
SDE_HD inline IntVec operator-(IntVec a, IntVec b) { return wrap(raw(a) - raw(b)); }
SDE_HD inline IntVec operator^(IntVec a, IntVec b) { return wrap(raw(a) ^ raw(b)); }
SDE_HD inline IntVec operator&(IntVec a, IntVec b) { return wrap(raw(a) & raw(b)); }
template <int kBits>
SDE_HD inline IntVec shift_left(IntVec a) {
  return wrap(raw(a) << kBits);
}
template <int kBits>
SDE_HD inline IntVec shift_right_arithmetic(IntVec a) {
  return {a.v >> kBits};
}
SDE_HD inline void mul_high_low(IntVec a, IntVec b, IntVec* high, IntVec* low) {
  const uint64_t product = static_cast<uint64_t>(raw(a)) * raw(b);
  *high = wrap(static_cast<uint32_t>(product >> 32));
  *low = wrap(static_cast<uint32_t>(product));
}

SDE_HD inline IntVec bits_of(Vec a) {
  IntVec bits;
  memcpy(&bits.v, &a.v, sizeof(bits.v));
  return bits;
}
SDE_HD inline Vec from_bits(IntVec a) {
  Vec x;
  memcpy(&x.v, &a.v, sizeof(x.v));
  return x;
}
SDE_HD inline Vec to_float(IntVec a) { return {static_cast<float>(a.v)}; }
SDE_HD inline Mask less(Vec a, Vec b) { return {a.v < b.v}; }
SDE_HD inline Mask less(IntVec a, IntVec b) { return {a.v < b.v}; }
SDE_HD inline Mask equal(IntVec a, IntVec b) { return {a.v == b.v}; }
SDE_HD inline Vec select(Mask m, Vec a, Vec b) { return m.v ? a : b; }

}  // namespace scalar
}  // namespace sdengine
