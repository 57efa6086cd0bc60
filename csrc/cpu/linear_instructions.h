// The instructions that the steps of `linear` are made of, pinned to the order in which they are
// written: left to itself gcc 12 hoists loads, runs out of registers and spills sums, and 6 rows x
// 2 vectors of AVX2 fall from 95% of the FMA peak to 65%. Sanitizers do not see into them, so a
// sanitized build leaves them to the compiler.
#pragma once

#include "cpu/vec.h"

#if defined(__AVX2__) && !defined(SDENGINE_SIMDE) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define SDENGINE_PINNED_STEPS 1
#endif

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// What lies so many bytes from p.
template <class T>
SDE_INLINE const T* bytes_from(const T* p, int64_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(p) + bytes);
}

#if defined(SDENGINE_PINNED_STEPS)
// A vector's worth of memory at p, as an operand.
template <class T>
SDE_INLINE const char (&vector_at(const T* p))[sizeof(Vec)] {
  return *reinterpret_cast<const char(*)[sizeof(Vec)]>(p);
}
SDE_INLINE void add_product(Vec& sum, Vec a, Vec b) {
  asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
}
SDE_INLINE Vec activation(const float* p) {
  Vec a;
  asm volatile("vbroadcastss %1, %0" : "=v"(a.v) : "m"(*p));
  return a;
}
SDE_INLINE Vec weights_at(const float* p) {
  Vec a;
  asm volatile("vmovups %1, %0" : "=v"(a.v) : "m"(vector_at(p)));
  return a;
}
SDE_INLINE IntVec pairs_at(const uint16_t* p) {
  IntVec a;
  asm volatile("vmovups %1, %0" : "=v"(a.v) : "m"(vector_at(p)));
  return a;
}
SDE_INLINE Vec first_of(IntVec pairs) {
  Vec a;
  asm volatile("vpslld $16, %1, %0" : "=v"(a.v) : "v"(pairs.v));
  return a;
}
SDE_INLINE Vec second_of(IntVec pairs, IntVec upper) {
  Vec a;
  asm volatile("vandps %2, %1, %0" : "=v"(a.v) : "v"(pairs.v), "v"(upper.v));
  return a;
}
template <int kOffset>
SDE_INLINE Vec halves_at(const Half* halves, int64_t at) {
  Vec a;
  asm volatile("vcvtph2ps %c3(%1,%2,8), %0" : "=v"(a.v) : "r"(halves), "r"(at), "i"(kOffset));
  return a;
}
#else
SDE_INLINE void add_product(Vec& sum, Vec a, Vec b) { sum = fma(a, b, sum); }
SDE_INLINE Vec activation(const float* p) { return broadcast(*p); }
SDE_INLINE Vec weights_at(const float* p) { return load(p); }
SDE_INLINE IntVec pairs_at(const uint16_t* p) {
  return load_int(reinterpret_cast<const int32_t*>(p));
}
SDE_INLINE Vec first_of(IntVec pairs) { return from_bits(shift_left<16>(pairs)); }
SDE_INLINE Vec second_of(IntVec pairs, IntVec upper) { return from_bits(pairs & upper); }
template <int kOffset>
SDE_INLINE Vec halves_at(const Half* halves, int64_t at) {
  return load_half(bytes_from(halves, 8 * at + kOffset));
}
#endif

// Twelve sums and three operands are fifteen registers, and the sixteenth is more than gcc 12 can
// manage: it moves sums about, or keeps one in memory (60% of the peak instead of 90%). So one
// operand goes through a register that the compiler does not count on.
#if defined(SDENGINE_PINNED_STEPS)
constexpr bool kPinsOperand = kLanes == 8;
// sums[c] += x * weights[c], and what else a step of one strip needs, with addresses spelt out: the
// inputs lie `at` bytes, and their weights of sixteen bits 8 `at` bytes, from where they are
// counted, so one index serves all. gcc advances a pointer for each otherwise: 53 instructions a
// step of 24 multiply-adds instead of 47, and on a core that is shared with a neighbour every one
// counts.
template <int kOffset>
SDE_INLINE void add_row(Vec (&sums)[2], const float* x, int64_t at, const Vec (&weights)[2]) {
  asm volatile(
      "vbroadcastss %c6(%2,%3), %%ymm15\n\t"
      "vfmadd231ps %4, %%ymm15, %0\n\t"
      "vfmadd231ps %5, %%ymm15, %1"
      : "+v"(sums[0].v), "+v"(sums[1].v)
      : "r"(x), "r"(at), "v"(weights[0].v), "v"(weights[1].v), "i"(kOffset)
      : "xmm15");
}
template <int kOffset>
SDE_INLINE Vec activation(const float* x, int64_t at) {
  Vec a;
  asm volatile("vbroadcastss %c3(%1,%2), %0" : "=v"(a.v) : "r"(x), "r"(at), "i"(kOffset));
  return a;
}
SDE_INLINE IntVec pairs_at(const uint16_t* pairs, int64_t at) {
  IntVec a;
  asm volatile("vmovups (%1,%2,8), %0" : "=v"(a.v) : "r"(pairs), "r"(at));
  return a;
}
template <int kOffset>
SDE_INLINE void load_first(Vec& a, const uint16_t* pairs, int64_t at) {
  asm volatile("vmovups %c3(%1,%2,8), %0\n\tvpslld $16, %0, %0"
               : "=v"(a.v)
               : "r"(pairs), "r"(at), "i"(kOffset));
}
template <int kOffset>
SDE_INLINE void load_second(Vec& a, const uint16_t* pairs, int64_t at, IntVec upper) {
  asm volatile("vandps %c4(%1,%2,8), %3, %0"
               : "=v"(a.v)
               : "r"(pairs), "r"(at), "v"(upper.v), "i"(kOffset));
}
// The weights of one input against three rows.
template <int kOffset>
SDE_INLINE void add_half_column(Vec& a, Vec& b, Vec& c, const Vec (&x)[3], const Half* halves,
                                int64_t at) {
  asm volatile(
      "vcvtph2ps %c8(%6,%7,8), %%ymm15\n\t"
      "vfmadd231ps %%ymm15, %3, %0\n\t"
      "vfmadd231ps %%ymm15, %4, %1\n\t"
      "vfmadd231ps %%ymm15, %5, %2"
      : "+v"(a.v), "+v"(b.v), "+v"(c.v)
      : "v"(x[0].v), "v"(x[1].v), "v"(x[2].v), "r"(halves), "r"(at), "i"(kOffset)
      : "xmm15");
}
// The first, or second, inputs of pairs against three rows: a mask in memory, for want of
// registers.
alignas(32) constexpr uint32_t kUpperHalves[8] = {~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu,
                                                  ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu};
#define SDE_ADD_COLUMN(name, extract)                                                            \
  SDE_INLINE void name(Vec& a, Vec& b, Vec& c, const Vec(&x)[3], const uint16_t* pairs,          \
                       int64_t at) {                                                             \
    asm volatile("vmovups (%6,%7,8), %%ymm15\n\t" extract                                        \
                 "vfmadd231ps %%ymm15, %3, %0\n\t"                                               \
                 "vfmadd231ps %%ymm15, %4, %1\n\t"                                               \
                 "vfmadd231ps %%ymm15, %5, %2"                                                   \
                 : "+v"(a.v), "+v"(b.v), "+v"(c.v)                                               \
                 : "v"(x[0].v), "v"(x[1].v), "v"(x[2].v), "r"(pairs), "r"(at), "m"(kUpperHalves) \
                 : "xmm15");                                                                     \
  }
SDE_ADD_COLUMN(add_first_column, "vpslld $16, %%ymm15, %%ymm15\n\t")
SDE_ADD_COLUMN(add_second_column, "vandps %8, %%ymm15, %%ymm15\n\t")
#undef SDE_ADD_COLUMN
#else
constexpr bool kPinsOperand = false;
template <int kOffset, int C>
void add_row(Vec (&sums)[C], const float* x, int64_t at, const Vec (&weights)[C]);
template <int kOffset>
void load_first(Vec& a, const uint16_t* pairs, int64_t at);
template <int kOffset>
void load_second(Vec& a, const uint16_t* pairs, int64_t at, IntVec upper);
template <int kOffset>
void add_half_column(Vec& a, Vec& b, Vec& c, const Vec (&x)[3], const Half* halves, int64_t at);
template <int kOffset>
SDE_INLINE Vec activation(const float* x, int64_t at) {
  return activation(bytes_from(x, at + kOffset));
}
SDE_INLINE IntVec pairs_at(const uint16_t* pairs, int64_t at) {
  return pairs_at(bytes_from(pairs, 8 * at));
}
void add_first_column(Vec& a, Vec& b, Vec& c, const Vec (&x)[3], const uint16_t* pairs, int64_t at);
void add_second_column(Vec& a, Vec& b, Vec& c, const Vec (&x)[3], const uint16_t* pairs,
                       int64_t at);
#endif

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
