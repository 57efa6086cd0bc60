// Sweeps in chunks that L1 holds, for cores that start two products in a cycle (Zen 5): what one
// load more costs in a step is arithmetic lost. Every group of rows takes all strips of a chunk, so
// that an activation is loaded for two or four sums, and finds the weights in L1: the groups before
// fetched them, each its part of the lines, in the order of their addresses (docs/log.md).
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
  Strips fetched;  // its first lines of the next chunk
  int64_t steps;
  bool is_first;
  float* partial;  // of the first row and strip
};

// Strips that lie together are fetched line after line, others side by side.
template <class Kernel>
constexpr bool kIsOneStream = Kernel::kTogether > 1;

// R rows against C strips; kLines lines of the next chunk a step.
template <class Kernel, int R, int C, int kLines>
void run_tile(const TileArgs& args) {
  Vec sums[R][C];
  clear(sums);
  asm volatile("" ::: "memory");  // a step's own instructions do not say what they read
  Strided<R> x(args.x, args.x_stride);
  Strided<C> w(args.w.first, args.w.stride);
  Strided<kLines == 0 ? 1 : kLines> fetched(args.fetched.first, args.fetched.stride);
  for (int64_t s = 0; s < args.steps; ++s) {
    Kernel::step(sums, x, w);
    SDE_UNROLL for (int l = 0; l < kLines; ++l) fetch_line<Kernel::kLocality>(fetched, l);
    x.advance(Kernel::kDepth * sizeof(typename Kernel::Input));
    w.advance(kLineStride<Kernel>);
    fetched.advance(kIsOneStream<Kernel> ? kLines * kLine : kLine);
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
RunTile choose_tile(int64_t rows, int64_t strips, int64_t lines) {
  constexpr auto kSizes = std::make_integer_sequence<int, Kernel::kChunkGroup>();
  constexpr int kAll = Kernel::kChunkStrips;
  static_assert(kAll == 2 || kAll == 4, "as many lines, half of them, one or none");
  if (strips < kAll) return tile_of_rows<Kernel, kAll / 2, 0>(rows, kSizes);
  if (lines == kAll) return tile_of_rows<Kernel, kAll, kAll>(rows, kSizes);
  if (lines == kAll / 2) return tile_of_rows<Kernel, kAll, kAll / 2>(rows, kSizes);
  if (lines == 1) return tile_of_rows<Kernel, kAll, 1>(rows, kSizes);
  return tile_of_rows<Kernel, kAll, 0>(rows, kSizes);
}

// Lines a step that the first `group` of `groups` groups fetch together: 4; 2, 2; 2, 1, 1; ... The
// other way round 16 rows take 1.09 of the time.
template <class Kernel>
SDE_INLINE int64_t lines_until(int64_t group, int64_t groups) {
  return (Kernel::kChunkStrips * group + groups - 1) / groups;
}

// Where a group begins to fetch when those before it fetch `lines` lines a step.
template <class Kernel>
SDE_INLINE Strips fetched_after(const Strips& next, int64_t lines, int64_t steps) {
  const int64_t stride = kIsOneStream<Kernel> ? kLine : next.stride;
  return {next.first + lines * (kIsOneStream<Kernel> ? steps * kLine : stride), stride};
}

// A group that is alone multiplies weights as they come. Those of large layers come from DRAM,
// which is fastest when lines are fetched so many steps ahead (4 to 6 rows take 0.90 to 0.94 of the
// time of a chunk ahead); the caches like a chunk (0.87).
constexpr int64_t kStepsAhead = 24;
template <class Kernel>
SDE_INLINE bool fetches_nearby(const PackedWeight& weight, int64_t groups) {
  return kIsOneStream<Kernel> && groups == 1 && weight.num_bytes() > kSmallWeight;
}

// As `run_chunks` (linear_wide.h).
template <class Kernel>
void run_chunks_in_l1(const LinearArgs& args, const RowsOf<Kernel>& x, int64_t rows, int64_t strip,
                      int64_t strips, const WeightShare* next, float* partial) {
  const PackedWeight& weight = args.weight;
  const int64_t groups = (rows + Kernel::kChunkGroup - 1) / Kernel::kChunkGroup;
  const int64_t x_stride = x.stride * int64_t{sizeof(*x.first)};
  const bool is_nearby = fetches_nearby<Kernel>(weight, groups);
  Strips chunk = strips_from(weight, strip);
  for (int64_t k = 0; k < weight.num_inputs; k += kFold) {
    const int64_t left = weight.num_inputs - k, inputs = left < kFold ? left : kFold;
    const int64_t steps = (inputs + Kernel::kDepth - 1) / Kernel::kDepth;
    const Strips after{chunk.first + steps * kLineStride<Kernel>, chunk.stride};
    Strips upcoming = left > kFold ? after : after_sweep(weight, strip + strips, next);
    if (is_nearby) upcoming.first = chunk.first + kStepsAhead * kLineStride<Kernel>;
    TileArgs tile{nullptr, x_stride, chunk, {}, steps, k == 0, nullptr};
    for (int64_t g = 0, r = 0, size; r < rows; ++g, r += size) {
      size = next_group(rows - r, Kernel::kChunkGroup);
      const int64_t lines = lines_until<Kernel>(g, groups);
      tile.x = reinterpret_cast<const char*>(x.first + r * x.stride + k);
      tile.fetched = fetched_after<Kernel>(upcoming, lines, steps);
      tile.partial = partial + r * kStripOutputs;
      choose_tile<Kernel>(size, strips, lines_until<Kernel>(g + 1, groups) - lines)(tile);
    }
    chunk = after;
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
