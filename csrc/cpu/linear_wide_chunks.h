// Sweeps in chunks that L1 holds, for cores that start two dot products in a cycle (Zen 5): what
// one load more costs in a step is arithmetic lost. Every group of rows takes all strips that lie
// together, so that an activation is loaded for four sums, and finds the weights in L1: the groups
// before fetched them, each its part of the lines, in the order of their addresses (docs/log.md).
#pragma once

#include <utility>

#include "cpu/linear_wide_step.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// One group's chain: `steps` steps over a chunk of kFold inputs.
struct TileArgs {
  const char* x;
  int64_t x_stride;
  Strips w;
  const char* fetched;  // its first line of the next chunk
  int64_t steps;
  bool is_first;
  float* partial;  // of the first row and strip
};

// R rows against C strips; kLines lines of the next chunk a step.
template <class Kernel, int R, int C, int kLines>
void run_tile(const TileArgs& args) {
  Vec sums[R][C];
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    SDE_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = zeros();
  }
  asm volatile("" ::: "memory");  // a step's own instructions do not say what they read
  Strided<R> x(args.x, args.x_stride);
  Strided<C> w(args.w.first, args.w.stride);
  Strided<kLines == 0 ? 1 : kLines> fetched(args.fetched, kLine);
  for (int64_t s = 0; s < args.steps; ++s) {
    Kernel::step(sums, x, w);
    SDE_UNROLL for (int l = 0; l < kLines; ++l) fetch_line<Kernel::kLocality>(fetched, l);
    x.advance(Kernel::kDepth * sizeof(typename Kernel::Input));
    w.advance(kLineStride<Kernel>);
    fetched.advance(kLines * kLine);
  }
  fold(sums, 0, args.is_first, args.partial);
}

using RunTile = void (*)(const TileArgs&);

template <class Kernel, int C, int kLines, int... Less>
RunTile tile_of_rows(int64_t rows, std::integer_sequence<int, Less...>) {
  static constexpr RunTile kTable[] = {run_tile<Kernel, Less + 1, C, kLines>...};
  return kTable[rows - 1];
}

// run_tile for `rows` rows. Half of what lies together, at an end of a share, fetches nothing.
template <class Kernel>
RunTile choose_tile(int64_t rows, bool is_half, int64_t lines) {
  constexpr auto kSizes = std::make_integer_sequence<int, Kernel::kMaxGroup>();
  constexpr int kAll = Kernel::kTogether;
  if (is_half) return tile_of_rows<Kernel, kAll / 2, 0>(rows, kSizes);
  if (lines == kAll) return tile_of_rows<Kernel, kAll, kAll>(rows, kSizes);
  if (lines == kAll / 2) return tile_of_rows<Kernel, kAll, kAll / 2>(rows, kSizes);
  if (lines == 1) return tile_of_rows<Kernel, kAll, 1>(rows, kSizes);
  return tile_of_rows<Kernel, kAll, 0>(rows, kSizes);
}

// Lines a step that the first `group` of `groups` groups fetch together: 4; 2, 2; 2, 1, 1; ... The
// other way round 16 rows take 1.09 of the time.
template <int64_t kAll>
SDE_INLINE int64_t lines_until(int64_t group, int64_t groups) {
  return (kAll * group + groups - 1) / groups;
}

// As `run_chunks` (linear_wide.h).
template <class Kernel>
void run_chunks_in_l1(const LinearArgs& args, const RowsOf<Kernel>& x, int64_t rows, int64_t strip,
                      int64_t strips, const WeightShare* next, float* partial) {
  constexpr int64_t kAll = Kernel::kTogether;
  static_assert(kAll == 4, "choose_tile knows 4, 2, 1 and no lines");
  const PackedWeight& weight = args.weight;
  const int64_t groups = (rows + Kernel::kMaxGroup - 1) / Kernel::kMaxGroup;
  Strips chunk = strips_from(weight, strip);
  for (int64_t k = 0; k < weight.num_inputs; k += kFold) {
    const int64_t left = weight.num_inputs - k, inputs = left < kFold ? left : kFold;
    const int64_t steps = (inputs + Kernel::kDepth - 1) / Kernel::kDepth;
    const Strips after{chunk.first + steps * kLineStride<Kernel>, chunk.stride};
    const Strips upcoming = left > kFold ? after : after_sweep(weight, strip + strips, next);
    TileArgs tile{
        nullptr, x.stride * int64_t{sizeof(*x.first)}, chunk, upcoming.first, steps, k == 0,
        nullptr};
    for (int64_t g = 0, r = 0, size; r < rows; ++g, r += size) {
      size = next_group<Kernel>(rows - r);
      const int64_t lines = lines_until<kAll>(g + 1, groups) - lines_until<kAll>(g, groups);
      tile.x = reinterpret_cast<const char*>(x.first + r * x.stride + k);
      tile.partial = partial + r * kStripOutputs;
      choose_tile<Kernel>(size, strips < kAll, lines)(tile);
      tile.fetched += steps * lines * kLine;
    }
    chunk = after;
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
