// The loops of `linear`, written once for all instruction sets; see linear.h for what they promise.
//
// A worker walks its share of the columns in panels of blocks, and a panel in sweeps of strips that
// are read side by side; within a sweep, chunks of K; over each chunk run all groups of rows, R x C
// vectors of sums in registers. A weight comes from memory once, whatever the number of rows (up to
// kLinearMaxRows), and is used from the caches by all groups of rows; meanwhile the chains of the
// groups prefetch the next chunk, each its part. After a share's last chunk comes the first of the
// worker's next launch: the layers of a small model have so few chunks that a quarter of the
// weights would come unannounced.
//
//   sweep              chunk       group of R rows        pass: C vectors
//   [K, 16 S columns]  [512, 16 S] [R, 512] x [512, 16 S] [R, 512] x [512, C * lanes]
#include <utility>

#include "cpu/linear_step.h"
#include "cpu/linear_tiling.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// Vector v of a sweep, in partial sums [strip][row][16].
template <class T>
SDE_INLINE T* partial_at(T* partial, int64_t row, int v) {
  return partial + v / kStripVectors * kPartialStride + row * kStripOutputs +
         v % kStripVectors * kLanes;
}

// Adds to partial sums, or starts them.
template <int R, int C>
SDE_INLINE void fold(const Vec (&sums)[R][C], int first, bool is_first, float* partial) {
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    SDE_UNROLL for (int c = 0; c < C; ++c) {
      float* p = partial_at(partial, r, first + c);
      store(p, is_first ? sums[r][c] : load(p) + sums[r][c]);
    }
  }
}

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
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    SDE_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = zeros();
  }
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

// One sweep of strips from `strip` on for up to kLinearMaxRows rows; `next` follows the last one of
// a share.
template <class Kernel>
void run_sweep(const LinearArgs& args, const typename Kernel::Input* const* x, int64_t rows,
               int64_t strip, int64_t strips, const WeightShare* next, float* partial) {
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
      group_of<Kernel>(size, strips)(x + r, chunk, fetch, partial + r * kStripOutputs);
    }
  }
}

// Adds bias, then stores or accumulates `n` columns.
SDE_INLINE void finish(Vec value, const float* bias, float* out, int n, bool accumulate) {
  if (n >= kLanes) {
    if (bias != nullptr) value = value + load(bias);
    store(out, accumulate ? load(out) + value : value);
  } else {
    if (bias != nullptr) value = value + load_partial(bias, n);
    store_partial(out, accumulate ? load_partial(out, n) + value : value, n);
  }
}

// out = sums (+ bias) for one block of columns.
SDE_INLINE void finish_block(const LinearArgs& args, int64_t block, int64_t first_row, int64_t rows,
                             const float* partial) {
  const int64_t column = block * kBlockOutputs;
  const int left = static_cast<int>(args.weight.num_outputs - column);
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.out + (first_row + r) * args.weight.num_outputs + column;
    for (int c = 0; c < kBlockOutputs && c < left; c += kLanes) {
      const float* bias = args.bias == nullptr ? nullptr : args.bias + column + c;
      finish(load(partial_at(partial, r, c / kLanes)), bias, out + c, left - c, args.accumulate);
    }
  }
}

// out = silu(gate) * up; a block holds a strip of gates and one of their ups.
SDE_INLINE void finish_gated_block(const LinearArgs& args, int64_t block, int64_t first_row,
                                   int64_t rows, const float* partial) {
  const int64_t features = args.weight.num_outputs / 2;
  const int64_t feature = block * kStripOutputs;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.out + (first_row + r) * features + feature;
    for (int c = 0; c < kStripOutputs && feature + c < features; c += kLanes) {
      const int n = static_cast<int>(features - feature - c);
      Vec gate = load(partial_at(partial, r, c / kLanes));
      Vec up = load(partial_at(partial, r, kStripVectors + c / kLanes));
      if (args.bias != nullptr) {
        const float* bias = args.bias + feature + c;
        gate = gate + (n < kLanes ? load_partial(bias, n) : load(bias));
        up = up + (n < kLanes ? load_partial(bias + features, n) : load(bias + features));
      }
      finish(gate / (broadcast(1.0f) + exp(-gate)) * up, nullptr, out + c, n, false);
    }
  }
}

// One panel of columns for up to kLinearMaxRows rows; `next` follows the last one of a share.
template <class Kernel>
void run_panel(const LinearArgs& args, const typename Kernel::Input* const* x, int64_t first_row,
               int64_t rows, Range blocks, const WeightShare* next, float* partial) {
  const int64_t strips = (blocks.end - blocks.begin) * kBlockStrips;
  const int64_t at_once = strips_at_once(blocks.end - blocks.begin, rows);
  for (int64_t s = 0; s < strips; s += at_once) {
    const WeightShare* after = s + at_once == strips ? next : nullptr;
    run_sweep<Kernel>(args, x, rows, blocks.begin * kBlockStrips + s, at_once, after,
                      partial + s * kPartialStride);
  }
  const auto finish_one = args.silu_gate ? finish_gated_block : finish_block;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    finish_one(args, block, first_row, rows, partial);
    partial += kBlockStrips * kPartialStride;
  }
}

// A share of the columns for all rows.
template <class Kernel>
SDE_INLINE void linear_blocks(const LinearArgs& args, Range share, const WeightShare& next,
                              void* scratch) {
  alignas(64) float partial[kMaxPanel * kBlockStrips * kPartialStride];
  const typename Kernel::Input* x[kLinearMaxRows];
  const int64_t num_rows = *args.num_rows;
  for (int64_t first = 0; first < num_rows; first += kLinearMaxRows) {
    const int64_t rows = num_rows - first < kLinearMaxRows ? num_rows - first : kLinearMaxRows;
    Kernel::prepare_rows(args, first, rows, scratch, x);
    // More rows than that read the share again.
    const WeightShare after = first + rows < num_rows ? WeightShare{&args.weight, share} : next;
    for (Range panel{share.begin, share.begin}; panel.begin < share.end; panel.begin = panel.end) {
      panel.end = panel.begin + next_panel(share.end - panel.begin, rows);
      run_panel<Kernel>(args, x, first, rows, panel, panel.end == share.end ? &after : nullptr,
                        partial);
    }
  }
}

// The same for a weight of any format; Bf16Kernel is the instruction set's way with bfloat16.
template <class Bf16Kernel>
SDE_INLINE void linear_blocks_of_format(const LinearArgs& args, Range share,
                                        const WeightShare& next, void* scratch) {
  switch (args.weight.format) {
    case Format::kFloat32:
      return linear_blocks<Fp32>(args, share, next, scratch);
    case Format::kBfloat16:
      return linear_blocks<Bf16Kernel>(args, share, next, scratch);
    case Format::kFloat16:
      return linear_blocks<WidenedHalf>(args, share, next, scratch);
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
