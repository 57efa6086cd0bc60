// The innermost step of `linear` with sixteen lanes: up to 24 sums in registers of R rows times C
// strips, one line of every strip's weights at a time.
//
// Addresses are equally spaced, so that three share a register: base, base + stride, base + 2
// stride. Otherwise gcc 12 keeps row pointers in vector registers, and fetching them from there
// takes a port that multiplies. A Kernel says how weights and activations are stored and how a
// step multiplies them; the order of additions into a sum is the same for every R and C.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/linear_instructions.h"
#include "cpu/linear_wide_tiling.h"
#include "cpu/norm_row.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// N addresses, `stride` bytes apart.
template <int N>
struct Strided {
  static constexpr int kBases = (N + 2) / 3;
  const char* base[kBases];
  int64_t stride;

  SDE_INLINE Strided(const void* first, int64_t apart) : stride(apart) {
    SDE_UNROLL for (int i = 0; i < kBases; ++i) base[i] =
        static_cast<const char*>(first) + 3 * i * apart;
  }
  SDE_INLINE void advance(int64_t bytes) {
    SDE_UNROLL for (int i = 0; i < kBases; ++i) {
      base[i] += bytes;
      asm("" : "+r"(base[i]));  // or gcc 12 adds one index to all of them again in every step
    }
  }
};

// An instruction that reads kOffset bytes from address `i`, a constant once loops are unrolled;
// also for kernels with instructions of their own.
#if defined(SDENGINE_PINNED_STEPS)
#define SDE_AT(before, after, output, at, i, kOffset, ...)                                     \
  if (i % 3 == 0)                                                                              \
    asm volatile(before "%c2(%1)" after                                                        \
                 : output                                                                      \
                 : "r"(at.base[i / 3]), "i"(kOffset), ##__VA_ARGS__);                          \
  else if (i % 3 == 1)                                                                         \
    asm volatile(before "%c2(%1,%[stride])" after                                              \
                 : output                                                                      \
                 : "r"(at.base[i / 3]), "i"(kOffset), [stride] "r"(at.stride), ##__VA_ARGS__); \
  else                                                                                         \
    asm volatile(before "%c2(%1,%[stride],2)" after                                            \
                 : output                                                                      \
                 : "r"(at.base[i / 3]), "i"(kOffset), [stride] "r"(at.stride), ##__VA_ARGS__)
template <int kOffset, int N>
SDE_INLINE Vec broadcast_at(const Strided<N>& at, int i) {
  Vec a;
  SDE_AT("vbroadcastss ", ", %0", "=v"(a.v), at, i, kOffset);
  return a;
}
template <int kOffset, int N>
SDE_INLINE Vec vector_at(const Strided<N>& at, int i) {
  Vec a;
  SDE_AT("vmovups ", ", %0", "=v"(a.v), at, i, kOffset);
  return a;
}
template <int kOffset, int N>
SDE_INLINE Vec halves_at(const Strided<N>& at, int i) {
  Vec a;
  SDE_AT("vcvtph2ps ", ", %0", "=v"(a.v), at, i, kOffset);
  return a;
}
// sum += what is broadcast * weight, in one instruction.
template <int kOffset, int N>
SDE_INLINE void add_broadcast(Vec& sum, const Strided<N>& at, int i, Vec weight) {
  SDE_AT("vfmadd231ps ", "%{1to16%}, %[weight], %0", "+v"(sum.v), at, i,
         kOffset, [weight] "v"(weight.v));
}
// A line on its way into the caches.
template <int kLocality, int N>
SDE_INLINE void fetch_line(const Strided<N>& at, int i) {
  __builtin_prefetch(at.base[i / 3] + i % 3 * at.stride, 0, kLocality);
}
#else
template <int kOffset, int N>
SDE_INLINE const float* floats_at(const Strided<N>& at, int i) {
  return reinterpret_cast<const float*>(at.base[i / 3] + i % 3 * at.stride + kOffset);
}
template <int kOffset, int N>
SDE_INLINE Vec broadcast_at(const Strided<N>& at, int i) {
  return broadcast(*floats_at<kOffset>(at, i));
}
template <int kOffset, int N>
SDE_INLINE Vec vector_at(const Strided<N>& at, int i) {
  return load(floats_at<kOffset>(at, i));
}
template <int kOffset, int N>
SDE_INLINE Vec halves_at(const Strided<N>& at, int i) {
  return load_half(reinterpret_cast<const Half*>(floats_at<kOffset>(at, i)));
}
template <int kOffset, int N>
SDE_INLINE void add_broadcast(Vec& sum, const Strided<N>& at, int i, Vec weight) {
  sum = fma(broadcast_at<kOffset>(at, i), weight, sum);
}
template <int kLocality, int N>
SDE_INLINE void fetch_line(const Strided<N>&, int) {}
#endif

// sums[r][c] += the input kOffset bytes from x[r] * weights[c].
template <int kOffset, int R, int C>
SDE_INLINE void add_products(Vec (&sums)[R][C], const Strided<R>& x, const Vec (&weights)[C]) {
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    if constexpr (C == 1) {
      add_broadcast<kOffset>(sums[r][0], x, r, weights[0]);
    } else {
      const Vec value = broadcast_at<kOffset>(x, r);
      SDE_UNROLL for (int c = 0; c < C; ++c) add_product(sums[r][c], value, weights[c]);
    }
  }
}

// Rows of activations: equally spaced, an odd number of lines apart so that they spread over the
// sets of the cache, and zero up to a whole step.
template <class Input>
struct Rows {
  const Input* first;
  int64_t stride;  // inputs

  static SDE_INLINE int64_t stride_of(int64_t num_inputs) {
    constexpr int64_t kInLine = kLine / sizeof(Input);
    return ((num_inputs + kInLine - 1) / kInLine | 1) * kInLine;
  }
};
template <class Kernel>
using RowsOf = Rows<typename Kernel::Input>;

// A row that is rounded already; zeros up to a whole vector.
SDE_INLINE void copy_row(const uint16_t* row, int64_t num_inputs, uint16_t* to) {
  std::memcpy(to, row, num_inputs * sizeof(*row));
  for (int64_t k = num_inputs; k % kLanes != 0; ++k) to[k] = 0;
}

// Copies rows into `scratch`, normalised if they are to be: every worker for itself (128 rows of
// 2048 cost 10 us; a barrier and a shared buffer would save less than they cost).
template <class Kernel>
SDE_INLINE RowsOf<Kernel> prepare_rows(const LinearArgs& args, int64_t first, int64_t count,
                                       void* scratch) {
  const int64_t num_inputs = args.weight.num_inputs;
  auto* to = static_cast<typename Kernel::Input*>(scratch);
  const RowsOf<Kernel> rows{to, RowsOf<Kernel>::stride_of(num_inputs)};
  for (int64_t r = 0; r < count; ++r, to += rows.stride) {
    if constexpr (std::is_same_v<typename Kernel::Input, uint16_t>) {
      if (args.x_format != Format::kFloat32) {
        copy_row(input_row<uint16_t>(args, first + r), num_inputs, to);
        continue;
      }
    }
    const float* row = input_row<float>(args, first + r);
    const bool is_normed = args.norm != nullptr;
    const Vec scale = is_normed ? norm_scale(row, num_inputs, args.eps) : zeros();
    for (int64_t k = 0; k < num_inputs; k += kLanes) {  // zero up to a whole vector
      Vec x = load_up_to(row + k, num_inputs - k);
      if (is_normed) x = x * scale * load_up_to(args.norm + k, num_inputs - k);
      store_rounded(to + k, x);
    }
  }
  return rows;
}

// How far ahead of their use a kernel fetches lines of weights, and into which cache. Intel's
// prefetchers follow a stream within its page, and far ahead there would be two; a Zen 4 core does
// better into L2 and a whole chain ahead (docs/log.md: 4 to 12 rows from DRAM take 0.8 to 0.9).
struct FetchesIntoL1 {
  static constexpr int64_t kAheadLines = 32;  // of every strip
  static constexpr int kLocality = 3;
};
struct FetchesIntoL2 {
  static constexpr int64_t kAheadLines = 64;
  static constexpr int kLocality = 2;
};

// bfloat16 weights, widened by a shift or a mask, which is exact; float32 activations.
struct WidenedBf16 : ApartTiling, FetchesIntoL1 {
  using Input = float;
  static constexpr int kDepth = 2;  // inputs a step

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const Strided<R>& x, const Strided<C>& w) {
    const IntVec upper = broadcast_int(static_cast<int32_t>(0xffff0000u));
    Vec weights[C];
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] = first_of(bits_of(vector_at<0>(w, c)));
    add_products<0>(sums, x, weights);
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] =
        second_of(bits_of(vector_at<0>(w, c)), upper);
    add_products<sizeof(Input)>(sums, x, weights);
  }
};

// float16 weights, widened by an instruction; float32 activations.
template <class Tiling>
struct WidenedHalfIn : Tiling, FetchesIntoL1 {
  using Input = float;
  static constexpr int kDepth = 2;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const Strided<R>& x, const Strided<C>& w) {
    Vec weights[C];
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] = halves_at<0>(w, c);
    add_products<0>(sums, x, weights);
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] =
        halves_at<kStripOutputs * sizeof(Half)>(w, c);
    add_products<sizeof(Input)>(sums, x, weights);
  }
};
using WidenedHalf = WidenedHalfIn<ApartTiling>;

// float32 weights and activations.
template <class Tiling>
struct Fp32In : Tiling, FetchesIntoL1 {
  using Input = float;
  static constexpr int kDepth = 1;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const Strided<R>& x, const Strided<C>& w) {
    Vec weights[C];
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] = vector_at<0>(w, c);
    add_products<0>(sums, x, weights);
  }
};
using Fp32 = Fp32In<ApartTiling>;

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
