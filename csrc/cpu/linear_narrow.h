// The loops over a sweep with four or eight lanes: chains, passes, groups of rows.
#pragma once

#include <utility>

#include "cpu/linear_narrow_tiling.h"
#include "cpu/linear_step.h"
#include "cpu/norm_row.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// Rows whose pointers the compiler is not to advance one by one, seven additions a step, where one
// index does: on a core shared with a neighbour every instruction counts. With more than six it has
// no registers for them.
template <int R>
constexpr bool kHidesRows = R > 3 && R <= 6;

// One chain: inputs [begin, end) of a chunk, folded into the partial sums; meanwhile kLines lines a
// step are prefetched.
template <class Kernel, int R, int C, int kLines>
SDE_INLINE void run_chain(const typename Kernel::Input* const (&x)[R],
                          const typename Kernel::Weight* const (&w)[C], int64_t begin, int64_t end,
                          const char* fetched, int first, bool is_first, float* partial) {
  // One index, in bytes of x, from which addresses of weights follow.
  constexpr int64_t kInputBytes = sizeof(typename Kernel::Input);
  constexpr int64_t kStep = Kernel::kDepth * kInputBytes;
  constexpr int64_t kWeights = kStripOutputs / kInputBytes;
  const typename Kernel::Input* rows[R];
  SDE_UNROLL for (int r = 0; r < R; ++r) rows[r] = x[r];
  Vec sums[R][C];
  clear(sums);
  asm volatile("" ::: "memory");  // a step's own instructions do not say what they read
  const int64_t stop = end * kInputBytes;
  int64_t at = begin * kInputBytes;
  for (; at + kStep <= stop; at += kStep) {
    for (int l = 0; l < kLines; ++l) __builtin_prefetch(fetched + l * kLine, 0, 2);
    fetched += kLines * kLine;
    if (kHidesRows<R>) {
      SDE_UNROLL for (int r = 0; r < R; ++r) asm("" : "+r"(rows[r]));
    }
    Kernel::template step<R, C>(sums, rows, at, w, at * kWeights);
  }
  if (at < stop) Kernel::template last_half_step<R, C>(sums, rows, at, w, at * kWeights);
  fold(sums, first, is_first, partial);
}

// The same as a function of its own: what is live around the call of an inlined one costs
// registers, and sums go to memory.
template <class Kernel, int R, int C, int kLines>
__attribute__((noinline)) void run_chain_apart(const typename Kernel::Input* const (&x)[R],
                                               const typename Kernel::Weight* const (&w)[C],
                                               int64_t begin, int64_t end, const char* fetched,
                                               int first, bool is_first, float* partial) {
  const typename Kernel::Weight* columns[C];
  SDE_UNROLL for (int c = 0; c < C; ++c) columns[c] = w[c];
  run_chain<Kernel, R, C, kLines>(x, columns, begin, end, fetched, first, is_first, partial);
}

// R rows against C vectors of columns of a chunk, from vector `first` of the sweep on: partial (+)=
// x W^T.
template <class Kernel, int R, int C>
SDE_INLINE void run_pass(const typename Kernel::Input* const* rows, const Chunk<Kernel>& chunk,
                         Fetch& fetch, int first, float* partial) {
  const typename Kernel::Input* x[R];
  SDE_UNROLL for (int r = 0; r < R; ++r) x[r] = rows[r] + chunk.first_input;
  const typename Kernel::Weight* w[C];
  SDE_UNROLL for (int c = 0; c < C; ++c) {
    const int v = first + c;
    w[c] = chunk.weight + v / kStripVectors * chunk.strip_stride +
           v % kStripVectors * kLanes * Kernel::kSideBySide;
  }
  for (int64_t k = 0; k < chunk.num_inputs; k += kFold) {
    const int64_t end = k + kFold < chunk.num_inputs ? k + kFold : chunk.num_inputs;
    const bool is_first = chunk.is_first && k == 0;
    constexpr int kLines = lines_a_step(C);
    const char* fetched = fetch.take(kLines);
    // One row is inlined: apart it needs a pointer for each vector (5% slower).
    if constexpr (R > 1) {
      const auto chain = fetched != nullptr ? run_chain_apart<Kernel, R, C, kLines>
                                            : run_chain_apart<Kernel, R, C, 0>;
      chain(x, w, k, end, fetched, first, is_first, partial);
    } else if (fetched != nullptr) {
      run_chain<Kernel, R, C, kLines>(x, w, k, end, fetched, first, is_first, partial);
    } else {
      run_chain<Kernel, R, C, 0>(x, w, k, end, nullptr, first, is_first, partial);
    }
  }
}

// All columns of a sweep of kStrips strips for R rows.
template <class Kernel, int R, int kStrips>
void run_group(const typename Kernel::Input* const* rows, const Chunk<Kernel>& chunk, Fetch& fetch,
               float* partial) {
  constexpr int kVectors = kStrips * kStripVectors;
  constexpr int C = columns_at_once(R, kStrips);
  static_assert(kVectors % C == 0, "columns must fill whole passes");
#pragma GCC unroll 12
  for (int first = 0; first < kVectors; first += C)
    run_pass<Kernel, R, C>(rows, chunk, fetch, first, partial);
}

template <class Kernel>
using RunGroup = void (*)(const typename Kernel::Input* const*, const Chunk<Kernel>&, Fetch&,
                          float* partial);

template <class Kernel>
struct Groups {
  RunGroup<Kernel> of_size[kMaxGroup];
};

template <class Kernel, int kStrips, int... Less>
constexpr Groups<Kernel> all_groups(std::integer_sequence<int, Less...>) {
  return {{run_group<Kernel, Less + 1, kStrips>...}};
}

// run_group for `rows` rows on a sweep of `strips` strips.
template <class Kernel>
RunGroup<Kernel> group_of(int64_t rows, int64_t strips) {
  constexpr auto kSizes = std::make_integer_sequence<int, kMaxGroup>();
  static constexpr Groups<Kernel> kTable[] = {
      all_groups<Kernel, 1>(kSizes), all_groups<Kernel, 2>(kSizes), all_groups<Kernel, 4>(kSizes)};
  return kTable[strips / 2].of_size[rows - 1];
}

// Rows of activations, used where they lie, or where a worker normalised them for itself.
struct Rows {
  const float* row[kLinearMaxRows];
};
template <class Kernel>
using RowsOf = Rows;
template <class Kernel>
SDE_INLINE Rows prepare_rows(const LinearArgs& args, int64_t first, int64_t count, void* scratch) {
  const int64_t num_inputs = args.weight.num_inputs;
  auto* to = static_cast<float*>(scratch);
  Rows x;
  for (int64_t r = 0; r < count; ++r) {
    x.row[r] = input_row<float>(args, first + r);
    if (args.norm == nullptr) continue;
    norm_row(x.row[r], args.norm, to, num_inputs, args.eps);
    x.row[r] = to;
    to += num_inputs;
  }
  return x;
}

// One sweep of strips from `strip` on for up to kLinearMaxRows rows; `next` follows the last one of
// a share.
template <class Kernel>
void run_sweep(const LinearArgs& args, const Rows& x, int64_t rows, int64_t strip, int64_t strips,
               const WeightShare* next, float* partial) {
  const int64_t stride = args.weight.strip_bytes() / sizeof(typename Kernel::Weight);
  const auto* weight =
      static_cast<const typename Kernel::Weight*>(args.weight.data) + strip * stride;
  for (int64_t k = 0; k < args.weight.num_inputs; k += kChunk) {
    const int64_t left = args.weight.num_inputs - k;
    const int64_t inputs = left < kChunk ? left : kChunk;
    const Chunk<Kernel> chunk{weight + k * kStripOutputs, stride, k, inputs, k == 0};
    Fetch fetch;
    if (fetches(args.weight, rows))
      fetch = next_chunk(args.weight, chunk, rows, strip, strips, next);
    for (int64_t r = 0, size; r < rows; r += size) {
      size = next_group(rows - r);
      group_of<Kernel>(size, strips)(x.row + r, chunk, fetch, partial + r * kStripOutputs);
    }
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
