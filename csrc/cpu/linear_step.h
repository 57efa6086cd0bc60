// The innermost step of `linear`: R rows times C vectors of columns times one or two inputs, sums
// in registers.
//
// A Kernel says how weights and activations are stored and how a step multiplies them. The order of
// additions into a sum is fixed by the step alone, so that it is the same for every R and C.
#pragma once

#include "cpu/linear.h"
#include "cpu/packed_weight.h"
#include "cpu/vec.h"

#if defined(__AVX2__) && !defined(SDENGINE_SIMDE) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define SDENGINE_PINNED_STEPS 1
#endif

// Rows of a step, unrolled before arrays of sums are turned into registers: gcc 12 keeps 12 x 2 in
// memory otherwise.
#define SDE_UNROLL _Pragma("GCC unroll 12")

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// The instructions of a step, pinned to the order in which they are written: left to itself gcc 12
// hoists loads, runs out of registers and spills sums, and 6 rows x 2 vectors of AVX2 fall from 95%
// of the FMA peak to 65%. Sanitizers do not see into them, so a sanitized build leaves them to the
// compiler.
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
// Straight from memory; `upper` wherever the compiler has room for it.
SDE_INLINE Vec second_at(const uint16_t* p, const IntVec& upper) {
  Vec a;
  asm volatile("vmovups %1, %0\n\tvandps %2, %0, %0"
               : "=&v"(a.v)
               : "m"(vector_at(p)), "vm"(upper.v));
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
SDE_INLINE Vec second_at(const uint16_t* p, const IntVec& upper) {
  return second_of(pairs_at(p), upper);
}
#endif

// Twelve sums and three operands are fifteen registers, and the sixteenth is more than gcc 12 can
// manage: it moves sums about, or keeps one in memory (60% of the peak instead of 90%). So one
// operand goes through a register that the compiler does not count on.
#if defined(SDENGINE_PINNED_STEPS)
constexpr bool kPinsOperand = kLanes == 8;
// sums[c] += x * weights[c], and what else a step of one strip needs, with addresses spelt out: the
// inputs lie `at` bytes, and their pairs of bfloat16 weights 8 `at` bytes, from where they are
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
// The first, or second, inputs of the pairs at p against three rows.
#define SDE_ADD_COLUMN(name, extract)                                                   \
  SDE_INLINE void name(Vec& a, Vec& b, Vec& c, const Vec(&x)[3], const uint16_t* p,     \
                       const IntVec& upper) {                                           \
    asm volatile("vmovups %6, %%ymm15\n\t" extract                                      \
                 "vfmadd231ps %%ymm15, %3, %0\n\t"                                      \
                 "vfmadd231ps %%ymm15, %4, %1\n\t"                                      \
                 "vfmadd231ps %%ymm15, %5, %2"                                          \
                 : "+v"(a.v), "+v"(b.v), "+v"(c.v)                                      \
                 : "v"(x[0].v), "v"(x[1].v), "v"(x[2].v), "m"(vector_at(p)), "m"(upper) \
                 : "xmm15");                                                            \
  }
SDE_ADD_COLUMN(add_first_column, "vpslld $16, %%ymm15, %%ymm15\n\t")
SDE_ADD_COLUMN(add_second_column, "vandps %7, %%ymm15, %%ymm15\n\t")
#undef SDE_ADD_COLUMN
#else
constexpr bool kPinsOperand = false;
template <int kOffset, int C>
void add_row(Vec (&sums)[C], const float* x, int64_t at, const Vec (&weights)[C]);
template <int kOffset>
void load_first(Vec& a, const uint16_t* pairs, int64_t at);
template <int kOffset>
void load_second(Vec& a, const uint16_t* pairs, int64_t at, IntVec upper);
void add_first_column(Vec& a, Vec& b, Vec& c, const Vec (&x)[3], const uint16_t* p, const IntVec&);
void add_second_column(Vec& a, Vec& b, Vec& c, const Vec (&x)[3], const uint16_t* p, const IntVec&);
#endif

// What lies `at` bytes from where a row, or a pointer into it, begins.
template <class T>
SDE_INLINE const T* input_at(const T* x, int64_t at) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(x) + at);
}

// sums[r][c] += x[r] at `at` * weight(c). The fewer operands stay in registers, the others pass by.
template <int R, int C, class WeightAt>
SDE_INLINE void multiply_add(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                             WeightAt weight) {
  if constexpr (C <= R) {
    Vec weights[C];
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] = weight(c);
    SDE_UNROLL for (int r = 0; r < R; ++r) {
      if constexpr (kPinsOperand && C == 2) {
        add_row<0>(sums[r], x[r], at, weights);
      } else {
        const Vec value = activation(input_at(x[r], at));
        SDE_UNROLL for (int c = 0; c < C; ++c) add_product(sums[r][c], value, weights[c]);
      }
    }
  } else {
    Vec values[R];
    SDE_UNROLL for (int r = 0; r < R; ++r) values[r] = activation(input_at(x[r], at));
    SDE_UNROLL for (int c = 0; c < C; ++c) {
      const Vec w = weight(c);
      SDE_UNROLL for (int r = 0; r < R; ++r) add_product(sums[r][c], values[r], w);
    }
  }
}

// The activations that make output row `row`.
SDE_INLINE const float* input_row(const LinearArgs& args, int64_t row) {
  return args.x + (args.rows == nullptr ? row : args.rows[row]) * args.weight.num_inputs;
}

// float32 rows are used where they lie.
SDE_INLINE void point_at_rows(const LinearArgs& args, int64_t first, int64_t count,
                              const float** x) {
  for (int64_t r = 0; r < count; ++r) x[r] = input_row(args, first + r);
}

// bfloat16 weights, widened by a shift or a mask, which is exact; float32 activations.
struct WidenedBf16 {
  using Weight = uint16_t;
  using Input = float;
  static constexpr int kDepth = 2;  // inputs a step
  static constexpr int kInputBytes = sizeof(Input);

  // The two inputs `at` bytes from x[r]; their weights in column vector c at w[c] + i.
  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                              const uint16_t* const (&w)[C], int64_t i) {
    const IntVec upper = broadcast_int(static_cast<int32_t>(0xffff0000u));
    if constexpr (R * C + 2 * R + 3 <= 16) {
      step_in_one_pass(sums, x, at, w, i, upper);
    } else if constexpr (kPinsOperand && R == 3 && C == 4) {
      step_by_columns(sums, x, at, w, i, upper);
    } else if constexpr (kPinsOperand && C == 2) {
      step_of_strip(sums, x, at, w[0], upper);
    } else {
      last_half_step(sums, x, at, w, i);
      multiply_add(sums, x, at + kInputBytes, [&](int c) { return second_at(w[c] + i, upper); });
    }
  }

  template <int R>
  static SDE_INLINE void step_of_strip(Vec (&sums)[R][2], const float* const (&x)[R], int64_t at,
                                       const uint16_t* pairs, IntVec upper) {
    Vec weights[2];
    load_first<0>(weights[0], pairs, at);
    load_first<sizeof(Vec)>(weights[1], pairs, at);
    SDE_UNROLL for (int r = 0; r < R; ++r) add_row<0>(sums[r], x[r], at, weights);
    load_second<0>(weights[0], pairs, at, upper);
    load_second<sizeof(Vec)>(weights[1], pairs, at, upper);
    SDE_UNROLL for (int r = 0; r < R; ++r) add_row<kInputBytes>(sums[r], x[r], at, weights);
  }

  static SDE_INLINE void step_by_columns(Vec (&sums)[3][4], const float* const (&x)[3], int64_t at,
                                         const uint16_t* const (&w)[4], int64_t i,
                                         const IntVec& upper) {
    Vec values[3];
    SDE_UNROLL for (int r = 0; r < 3; ++r) values[r] = activation(input_at(x[r], at));
    SDE_UNROLL for (int c = 0; c < 4; ++c)
        add_first_column(sums[0][c], sums[1][c], sums[2][c], values, w[c] + i, upper);
    SDE_UNROLL for (int r = 0; r < 3; ++r) values[r] = activation(input_at(x[r], at) + 1);
    SDE_UNROLL for (int c = 0; c < 4; ++c)
        add_second_column(sums[0][c], sums[1][c], sums[2][c], values, w[c] + i, upper);
  }

  // The first of them alone, when K is odd.
  template <int R, int C>
  static SDE_INLINE void last_half_step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                                        const uint16_t* const (&w)[C], int64_t i) {
    multiply_add(sums, x, at, [&](int c) { return first_of(pairs_at(w[c] + i)); });
  }

  // Loads each pair once: with one or two rows the loads are the bottleneck (1 x 8: 63 GB/s from L2
  // instead of 41).
  template <int R, int C>
  static SDE_INLINE void step_in_one_pass(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                                          const uint16_t* const (&w)[C], int64_t i, IntVec upper) {
    Vec first_values[R], second_values[R];
    SDE_UNROLL for (int r = 0; r < R; ++r) first_values[r] = activation(input_at(x[r], at));
    SDE_UNROLL for (int r = 0; r < R; ++r) second_values[r] = activation(input_at(x[r], at) + 1);
    SDE_UNROLL for (int c = 0; c < C; ++c) {
      const IntVec pairs = pairs_at(w[c] + i);
      const Vec first = first_of(pairs);
      SDE_UNROLL for (int r = 0; r < R; ++r) add_product(sums[r][c], first_values[r], first);
      const Vec second = second_of(pairs, upper);
      SDE_UNROLL for (int r = 0; r < R; ++r) add_product(sums[r][c], second_values[r], second);
    }
  }

  static SDE_INLINE void prepare_rows(const LinearArgs& args, int64_t first, int64_t count, void*,
                                      const float** x) {
    point_at_rows(args, first, count, x);
  }
};

// float32 weights and activations.
struct Fp32 {
  using Weight = float;
  using Input = float;
  static constexpr int kDepth = 1;
  static constexpr int kInputBytes = sizeof(Input);

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                              const float* const (&w)[C], int64_t i) {
    multiply_add(sums, x, at, [&](int c) { return weights_at(w[c] + i); });
  }

  template <int R, int C>
  static SDE_INLINE void last_half_step(Vec (&)[R][C], const float* const (&)[R], int64_t,
                                        const float* const (&)[C], int64_t) {}

  static SDE_INLINE void prepare_rows(const LinearArgs& args, int64_t first, int64_t count, void*,
                                      const float** x) {
    point_at_rows(args, first, count, x);
  }
};

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
