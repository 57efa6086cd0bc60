// The innermost step of `linear` with four or eight lanes: R rows times C vectors of columns times
// one or two inputs, sums in registers.
//
// A Kernel says how weights and activations are stored and how a step multiplies them. The order of
// additions into a sum is fixed by the step alone, so that it is the same for every R and C.
#pragma once

#include "cpu/linear.h"
#include "cpu/linear_instructions.h"
#include "cpu/linear_tiling.h"
#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

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
        const Vec value = activation(bytes_from(x[r], at));
        SDE_UNROLL for (int c = 0; c < C; ++c) add_product(sums[r][c], value, weights[c]);
      }
    }
  } else {
    Vec values[R];
    SDE_UNROLL for (int r = 0; r < R; ++r) values[r] = activation(bytes_from(x[r], at));
    SDE_UNROLL for (int c = 0; c < C; ++c) {
      const Vec w = weight(c);
      SDE_UNROLL for (int r = 0; r < R; ++r) add_product(sums[r][c], values[r], w);
    }
  }
}

// bfloat16 weights, widened by a shift or a mask, which is exact; float32 activations.
struct WidenedBf16 {
  using Input = float;
  using Weight = uint16_t;
  static constexpr int kDepth = 2;       // inputs a step
  static constexpr int kSideBySide = 2;  // inputs of an output that stand together

  // The two inputs `at` bytes from x[r]; their weights in column vector c at w[c] + i.
  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                              const uint16_t* const (&w)[C], int64_t i) {
    const IntVec upper = broadcast_int(static_cast<int32_t>(0xffff0000u));
    if constexpr (R * C + 2 * R + 3 <= 16) {
      step_in_one_pass(sums, x, at, w, upper);
    } else if constexpr (kPinsOperand && R == 3 && C == 4) {
      step_by_columns(sums, x, at, w);
    } else if constexpr (kPinsOperand && C == 2) {
      step_of_strip(sums, x, at, w[0], upper);
    } else {
      last_half_step(sums, x, at, w, i);
      multiply_add(sums, x, at + sizeof(Input),
                   [&](int c) { return second_of(pairs_at(w[c] + i), upper); });
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
    SDE_UNROLL for (int r = 0; r < R; ++r) add_row<sizeof(Input)>(sums[r], x[r], at, weights);
  }

  static SDE_INLINE void step_by_columns(Vec (&sums)[3][4], const float* const (&x)[3], int64_t at,
                                         const uint16_t* const (&w)[4]) {
    Vec values[3];
    SDE_UNROLL for (int r = 0; r < 3; ++r) values[r] = activation<0>(x[r], at);
    SDE_UNROLL for (int c = 0; c < 4; ++c)
        add_first_column(sums[0][c], sums[1][c], sums[2][c], values, w[c], at);
    SDE_UNROLL for (int r = 0; r < 3; ++r) values[r] = activation<sizeof(Input)>(x[r], at);
    SDE_UNROLL for (int c = 0; c < 4; ++c)
        add_second_column(sums[0][c], sums[1][c], sums[2][c], values, w[c], at);
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
                                          const uint16_t* const (&w)[C], IntVec upper) {
    Vec first_values[R], second_values[R];
    SDE_UNROLL for (int r = 0; r < R; ++r) first_values[r] = activation<0>(x[r], at);
    SDE_UNROLL for (int r = 0; r < R; ++r) second_values[r] = activation<sizeof(Input)>(x[r], at);
    SDE_UNROLL for (int c = 0; c < C; ++c) {
      const IntVec pairs = pairs_at(w[c], at);
      const Vec first = first_of(pairs);
      SDE_UNROLL for (int r = 0; r < R; ++r) add_product(sums[r][c], first_values[r], first);
      const Vec second = second_of(pairs, upper);
      SDE_UNROLL for (int r = 0; r < R; ++r) add_product(sums[r][c], second_values[r], second);
    }
  }
};

// float16 weights, widened by an instruction of two parts, which take the ports that a shift and a
// load do; float32 activations.
struct WidenedHalf {
  using Input = float;
  using Weight = Half;
  static constexpr int kDepth = 2;
  static constexpr int kSideBySide = 1;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                              const Half* const (&w)[C], int64_t) {
    half_step<0>(sums, x, at, w);
    half_step<1>(sums, x, at, w);
  }

  template <int R, int C>
  static SDE_INLINE void last_half_step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                                        const Half* const (&w)[C], int64_t) {
    half_step<0>(sums, x, at, w);
  }

  // Input kInput of a step.
  template <int kInput, int R, int C>
  static SDE_INLINE void half_step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                                   const Half* const (&w)[C]) {
    constexpr int kInRow = kInput * sizeof(Input);  // bytes
    constexpr int kInStrip = kInput * kStripOutputs * sizeof(Half);
    if constexpr (kPinsOperand && R == 3 && C == 4) {
      Vec values[3];
      SDE_UNROLL for (int r = 0; r < 3; ++r) values[r] = activation<kInRow>(x[r], at);
      SDE_UNROLL for (int c = 0; c < 4; ++c)
          add_half_column<kInStrip>(sums[0][c], sums[1][c], sums[2][c], values, w[c], at);
    } else if constexpr (kPinsOperand && C == 2) {
      constexpr int kNext = kInStrip + kLanes * sizeof(Half);
      const Vec weights[2] = {halves_at<kInStrip>(w[0], at), halves_at<kNext>(w[0], at)};
      SDE_UNROLL for (int r = 0; r < R; ++r) add_row<kInRow>(sums[r], x[r], at, weights);
    } else {
      multiply_add(sums, x, at + kInRow, [&](int c) { return halves_at<kInStrip>(w[c], at); });
    }
  }
};

// float32 weights and activations.
struct Fp32 {
  using Input = float;
  using Weight = float;
  static constexpr int kDepth = 1;
  static constexpr int kSideBySide = 1;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t at,
                              const float* const (&w)[C], int64_t i) {
    multiply_add(sums, x, at, [&](int c) { return weights_at(w[c] + i); });
  }

  template <int R, int C>
  static SDE_INLINE void last_half_step(Vec (&)[R][C], const float* const (&)[R], int64_t,
                                        const float* const (&)[C], int64_t) {}
};

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
