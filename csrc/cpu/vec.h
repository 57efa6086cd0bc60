// Lanes of 32 bits: one vocabulary for AVX-512 (16 lanes), AVX2 (8) and compiler vectors (4).
//
// The instruction set of the translation unit decides, and everything lives in an inline namespace
// named after it, so that objects compiled for different sets never share a symbol. A kernel is one
// `<op>.inl` that opens `namespace sdengine { inline namespace SDENGINE_ISA_NAMESPACE {` and is
// included by <op>_portable.cpp, <op>_avx2.cpp and <op>_avx512.cpp; <op>.cpp chooses with
// selected_isa(). A kernel must not call non-template, non-SDE_INLINE functions defined in other
// headers (the linker could keep the copy with the wider instructions).
//
// Vec (float), IntVec (int32 or uint32, as the function says) and Mask (one truth value per lane)
// offer
//   broadcast(x)  load(p)  store(p, a)  load_partial(p, n)  store_partial(p, a, n)   lanes >= n:
//   zero / not written
//   + - * /  unary -  fma(a, b, c) = a * b + c (one rounding where the hardware has it)  abs  sqrt
//   round (half to even) min(a, b), max(a, b): b where either is NaN broadcast_int  iota  load_int
//   store_int  load_int_partial  store_int_partial  + - * (low 32 bits) ^ & | shift_left<k>
//   shift_right_logical<k>  shift_right_arithmetic<k>  mul_high_low(a, b, &high, &low) (unsigned)
//   bits_of(Vec)  from_bits(IntVec)  to_float (signed)  unsigned_to_float (round to nearest)
//   round_to_int  truncate_to_int
//   less  less_equal  equal  is_nan (false on NaN otherwise)  less(IntVec) (signed)  equal(IntVec)
//   & | ~ on masks  first_lanes(n)  bits_of(Mask) (bit i = lane i)  any  all  select(m, a, b) = m ?
//   a : b sum(a), max_lane(a): halves folded onto each other, lanes i and i + width / 2 first;
//   always the same tree load_bf16  store_bf16  load_half  store_half (round to nearest even, NaN
//   stays NaN; half: 65520 and more to infinity) exp  log  log1p: below 2 ulp, the same polynomials
//   everywhere (bits differ where fma differs)
// and, for elements of any number format (number_format.h),
//   load_as_float  load_as_float_partial  store_rounded  store_rounded_partial
#pragma once

#include "cpu/number_format.h"

#define SDE_INLINE __attribute__((always_inline)) inline

#if defined(SDENGINE_SIMDE) || (defined(__AVX512F__) && defined(__AVX512BW__) && \
                                defined(__AVX512VL__) && defined(__AVX512DQ__))
#if defined(__AVX512BF16__) || defined(SDENGINE_SIMDE_BF16)
#define SDENGINE_ISA_NAMESPACE isa_avx512_bf16
#else
#define SDENGINE_ISA_NAMESPACE isa_avx512
#endif
#define SDENGINE_SIXTEEN_LANES 1
#include "cpu/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#define SDENGINE_ISA_NAMESPACE isa_avx2
#include "cpu/vec_avx2.h"
#else
#define SDENGINE_ISA_NAMESPACE isa_portable
#include "cpu/vec_portable.h"
#endif

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

constexpr int kLanes = Vec::kLanes;

SDE_INLINE Vec zeros() { return broadcast(0.0f); }
SDE_INLINE bool any(Mask a) { return bits_of(a) != 0; }
SDE_INLINE bool all(Mask a) { return bits_of(a) == (1u << kLanes) - 1u; }

// A whole vector, or the `left` lanes that there are and zeros.
SDE_INLINE Vec load_up_to(const float* p, int64_t left) {
  return left >= kLanes ? load(p) : load_partial(p, static_cast<int>(left));
}

SDE_INLINE Vec load_as_float(const float* p) { return load(p); }
SDE_INLINE Vec load_as_float(const uint16_t* p) { return load_bf16(p); }
SDE_INLINE Vec load_as_float(const Half* p) { return load_half(p); }
SDE_INLINE void store_rounded(float* p, Vec a) { store(p, a); }
SDE_INLINE void store_rounded(uint16_t* p, Vec a) { store_bf16(p, a); }
SDE_INLINE void store_rounded(Half* p, Vec a) { store_half(p, a); }

SDE_INLINE Vec load_as_float_partial(const float* p, int n) { return load_partial(p, n); }
template <class T>
SDE_INLINE Vec load_as_float_partial(const T* p, int n) {
  alignas(64) T lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load_as_float(lanes);
}
SDE_INLINE void store_rounded_partial(float* p, Vec a, int n) { store_partial(p, a, n); }
template <class T>
SDE_INLINE void store_rounded_partial(T* p, Vec a, int n) {
  alignas(64) T lanes[kLanes];
  store_rounded(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

template <class T>
SDE_INLINE void store_rounded_up_to(T* p, Vec a, int64_t left) {
  if (left >= kLanes) return store_rounded(p, a);
  store_rounded_partial(p, a, static_cast<int>(left));
}
// At element `at` of an activation, which is float32 or bfloat16.
SDE_INLINE void store_activation(void* out, Format format, int64_t at, Vec a, int64_t left) {
  if (format == Format::kFloat32)
    return store_rounded_up_to(static_cast<float*>(out) + at, a, left);
  store_rounded_up_to(static_cast<uint16_t*>(out) + at, a, left);
}

// e^a. Overflow gives inf, underflow goes through the subnormals to 0, NaN stays NaN.
// Source: range reduction by Cody and Waite, polynomial of the Cephes library's expf.
SDE_INLINE Vec exp(Vec a) {
  const Vec x = min(broadcast(89.0f), max(broadcast(-105.0f), a));
  const Vec n = round(x * broadcast(1.44269504088896341f));
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec y = broadcast(1.9875691500e-4f);
  y = fma(y, r, broadcast(1.3981999507e-3f));
  y = fma(y, r, broadcast(8.3334519073e-3f));
  y = fma(y, r, broadcast(4.1665795894e-2f));
  y = fma(y, r, broadcast(1.6666665459e-1f));
  y = fma(y, r, broadcast(5.0000001201e-1f));
  y = fma(y, r * r, r) + broadcast(1.0f);
  return scale_by_power(y, n);
}

// Natural logarithm. log(0) = -inf, log(negative) = NaN, log(inf) = inf; subnormals are exact
// inputs. Source: polynomial of the Cephes library's logf on [sqrt(1/2), sqrt(2)).
SDE_INLINE Vec log(Vec a) {
  const Mask tiny = less(a, broadcast(1.17549435e-38f));
  const IntVec bits = bits_of(select(tiny, a * broadcast(8388608.0f), a));
  // Shifting by sqrt(1/2)'s bits carries into the exponent field exactly when the mantissa is above
  // sqrt(2).
  const IntVec shifted = bits - broadcast_int(0x3f3504f3);
  const IntVec exponent = shift_right_arithmetic<23>(shifted);
  const IntVec mantissa = (shifted & broadcast_int(0x007fffff)) + broadcast_int(0x3f3504f3);
  const Vec e = to_float(exponent) - select(tiny, broadcast(23.0f), zeros());
  const Vec x = from_bits(mantissa) - broadcast(1.0f);
  const Vec z = x * x;
  Vec y = broadcast(7.0376836292e-2f);
  y = fma(y, x, broadcast(-1.1514610310e-1f));
  y = fma(y, x, broadcast(1.1676998740e-1f));
  y = fma(y, x, broadcast(-1.2420140846e-1f));
  y = fma(y, x, broadcast(1.4249322787e-1f));
  y = fma(y, x, broadcast(-1.6668057665e-1f));
  y = fma(y, x, broadcast(2.0000714765e-1f));
  y = fma(y, x, broadcast(-2.4999993993e-1f));
  y = fma(y, x, broadcast(3.3333331174e-1f));
  y = y * x * z;
  y = fma(e, broadcast(-2.12194440e-4f), y);
  y = fma(broadcast(-0.5f), z, y);
  const Vec value = fma(e, broadcast(0.693359375f), x + y);
  const Vec infinity = broadcast(__builtin_inff());
  Vec out = select(equal(a, infinity), infinity, value);
  out = select(equal(a, zeros()), -infinity, out);
  return select(less_equal(zeros(), a), out, broadcast(__builtin_nanf("")));
}

// log(1 + a) for a > -1, accurate near 0: the rounding error of 1 + a is put back to first order.
SDE_INLINE Vec log1p(Vec a) {
  const Vec one = broadcast(1.0f);
  const Vec u = one + a;
  const Vec lost = (u - one) - a;
  const Vec out = log(u) - lost / u;
  return select(equal(u, one), a, out);
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
