// The loops of `linear`, written once for all instruction sets; see linear.h for what they promise.
//
// A worker walks its share of the columns in panels of up to three blocks of 32; within a panel,
// chunks of K; over each chunk run all groups of rows, R x C vectors of sums in registers. A weight
// comes from memory once, whatever the number of rows (up to kLinearMaxRows), and is used from the
// L2 cache by all groups of rows; meanwhile the groups prefetch the next chunk, each its part.
//
//   panel            chunk             group of R rows        pass: C vectors
//   [K, 96 columns]  [512, 96]         [R, 512] x [512, 96]   [R, 512] x [512, C * lanes]
#include <utility>

#include "cpu/linear_step.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

constexpr int64_t kChunk = 512;  // inputs. Longer gains nothing, 256 costs 1-2%
constexpr int64_t kFold =
    128;  // inputs in one chain of additions; then it is folded into the partial sums
constexpr int kBlockVectors = kBlockOutputs / kLanes;
constexpr int kMaxPanel = 3;                      // blocks
constexpr int kMaxGroup = kLanes == 16 ? 12 : 6;  // rows
constexpr int64_t kPartialStride =
    kLinearMaxRows * kBlockOutputs;  // partial sums: [block of the panel][row][32]
constexpr int64_t kLine = 64;        // bytes

// One chunk of the weights of a panel.
template <class Kernel>
struct Chunk {
  const typename Kernel::Weight* weight;
  int64_t block_stride;  // elements from a block to the next
  int64_t first_input;
  int64_t num_inputs;
  bool is_first;
  int64_t ahead;         // elements from here to the chunk that is prefetched meanwhile
  int64_t fetch_inputs;  // how much of it each group of rows prefetches
};

// Vectors of columns that R rows take at once: as many sums as leave registers for weights and
// activations. Sixteen registers hold 12 sums, thirty-two hold 24. A multiply-add takes 4 cycles
// and two start in one, but 8 sums are not enough in practice: 4 x 2 reaches 86% of the peak and 4
// x 3 95%, hence panels of three blocks.
constexpr int columns_at_once(int rows, int blocks) {
  if (kLanes == 16) {
    if (blocks < kMaxPanel) return rows <= 6 ? 2 * blocks : 2;
    return rows <= 4 ? 6 : rows <= 8 ? 3 : 2;
  }
  if (kLanes == 8 && rows == 1) return 4 * blocks;
  if (kLanes == 8 && rows == 4 && blocks == 3) return 3;
  return rows <= 3 ? 4 : 2;
}

// Blocks of the next panel. One row reads two streams, two and three rows one stream (whole blocks,
// which the hardware prefetcher follows best); from four rows on the sums need three blocks.
SDE_INLINE int64_t next_panel(int64_t blocks_left, int64_t rows) {
  if (rows == 2 || rows == 3) return 1;
  if (rows == 1 || blocks_left == 4) return blocks_left < 2 ? blocks_left : 2;
  return blocks_left < kMaxPanel ? blocks_left : kMaxPanel;
}

// Size of the next group of rows: as few groups as possible, and 6, 4 and 5 rows (in this order)
// fill the registers best.
SDE_INLINE int64_t next_group(int64_t rows_left) {
  if (kMaxGroup == 6)
    return rows_left <= 6 ? rows_left : rows_left <= 8 ? 4 : rows_left == 9 ? 5 : 6;
  const int64_t groups = (rows_left + kMaxGroup - 1) / kMaxGroup;
  return (rows_left + groups - 1) / groups;
}

// One and two rows are bound by memory alone, and the hardware prefetcher does better without
// help: 1.03x the time of a plain read against 1.1-1.5x with software prefetch at any distance.
// From three rows on, prefetching into L2 a whole chunk ahead is best (1.1x; into L1 1.5x; 4 KB
// ahead 1.4x).
constexpr bool prefetches(int rows) { return rows > 2; }

template <class Kernel>
constexpr int64_t kVectorBytes =
    kLanes * Kernel::kDepth * static_cast<int64_t>(sizeof(typename Kernel::Weight));

// Fetches the lines of the C vectors from `first` on, as far as they begin in them.
template <class Kernel, int C>
SDE_INLINE void prefetch_lines(const typename Kernel::Weight* const (&w)[C], int64_t i, int first) {
  for (int c = 0; c < C; ++c) {
    if ((first + c) * kVectorBytes<Kernel> % kLine == 0) __builtin_prefetch(w[c] + i, 0, 2);
  }
}

// Vector v of a panel, in partial sums [block][row][32].
SDE_INLINE float* partial_at(float* partial, int row, int v) {
  return partial + v / kBlockVectors * kPartialStride + row * kBlockOutputs +
         v % kBlockVectors * kLanes;
}

// Adds to partial sums, or starts them.
template <int R, int C>
SDE_INLINE void fold(const Vec (&sums)[R][C], int first, bool is_first, float* partial) {
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      float* p = partial_at(partial, r, first + c);
      store(p, is_first ? sums[r][c] : load(p) + sums[r][c]);
    }
  }
}

// One chain: inputs [begin, end) of a chunk; `fetched` is the chunk that it prefetches.
template <class Kernel, int R, int C, bool kPrefetch>
SDE_INLINE void run_chain(Vec (&sums)[R][C], const typename Kernel::Input* const (&x)[R],
                          const typename Kernel::Weight* const (&w)[C], int64_t begin, int64_t end,
                          int first, int64_t ahead) {
  constexpr int64_t kStride = kBlockOutputs * Kernel::kDepth;
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = zeros();
  }
  int64_t k = begin;
  int64_t i = begin * kBlockOutputs;
  for (; k + Kernel::kDepth <= end; k += Kernel::kDepth, i += kStride) {
    if (kPrefetch) prefetch_lines<Kernel, C>(w, i + ahead, first);
    Kernel::template step<R, C>(sums, x, k, w, i);
  }
  if (k < end) Kernel::template last_half_step<R, C>(sums, x, k, w, i);
}

// R rows against C vectors of columns of a chunk, from vector `first` of the panel on: partial (+)=
// x W^T.
template <class Kernel, int R, int C>
SDE_INLINE void run_pass(const typename Kernel::Input* const* rows, const Chunk<Kernel>& chunk,
                         int group, int first, float* partial) {
  const typename Kernel::Input* x[R];
  SDE_UNROLL for (int r = 0; r < R; ++r) x[r] = rows[r] + chunk.first_input;
  const typename Kernel::Weight* w[C];
  for (int c = 0; c < C; ++c) {
    const int v = first + c;
    w[c] = chunk.weight + v / kBlockVectors * chunk.block_stride +
           v % kBlockVectors * kLanes * Kernel::kDepth;
  }
  const int64_t fetch_begin = prefetches(R) ? group * chunk.fetch_inputs : 0;
  const int64_t fetch_end = prefetches(R) ? fetch_begin + chunk.fetch_inputs : 0;
  for (int64_t k = 0; k < chunk.num_inputs; k += kFold) {
    const int64_t end = k + kFold < chunk.num_inputs ? k + kFold : chunk.num_inputs;
    Vec sums[R][C];
    if (k >= fetch_begin && k < fetch_end) {
      run_chain<Kernel, R, C, true>(sums, x, w, k, end, first, chunk.ahead);
    } else {
      run_chain<Kernel, R, C, false>(sums, x, w, k, end, first, 0);
    }
    fold(sums, first, chunk.is_first && k == 0, partial);
  }
}

// All columns of a panel of kBlocks blocks for R rows; `group` counts the groups of rows on this
// chunk.
template <class Kernel, int R, int kBlocks>
void run_group(const typename Kernel::Input* const* rows, const Chunk<Kernel>& chunk, int group,
               float* partial) {
  constexpr int kVectors = kBlocks * kBlockVectors;
  constexpr int C = columns_at_once(R, kBlocks);
  static_assert(kVectors % C == 0, "columns must fill whole passes");
#pragma GCC unroll 12
  for (int first = 0; first < kVectors; first += C)
    run_pass<Kernel, R, C>(rows, chunk, group, first, partial);
}

template <class Kernel>
using RunGroup = void (*)(const typename Kernel::Input* const*, const Chunk<Kernel>&, int group,
                          float* partial);

template <class Kernel>
struct Groups {
  RunGroup<Kernel> of_size[kMaxGroup];
};

template <class Kernel, int kBlocks, int... Less>
constexpr Groups<Kernel> all_groups(std::integer_sequence<int, Less...>) {
  return {{run_group<Kernel, Less + 1, kBlocks>...}};
}

// run_group for `rows` rows on a panel of `blocks` blocks.
template <class Kernel>
RunGroup<Kernel> group_of(int64_t rows, int64_t blocks) {
  constexpr auto kSizes = std::make_integer_sequence<int, kMaxGroup>();
  static constexpr Groups<Kernel> kTable[kMaxPanel] = {
      all_groups<Kernel, 1>(kSizes), all_groups<Kernel, 2>(kSizes), all_groups<Kernel, 3>(kSizes)};
  return kTable[blocks - 1].of_size[rows - 1];
}

// One panel of columns for up to kLinearMaxRows rows.
template <class Kernel>
void run_panel(const LinearArgs& args, const typename Kernel::Input* const* x, int64_t rows,
               int64_t block, int64_t num_blocks, float* partial) {
  constexpr int64_t kDepth = Kernel::kDepth;
  const int64_t stride = (args.num_inputs + kDepth - 1) / kDepth * kDepth * kBlockOutputs;
  const int64_t groups = (rows + kMaxGroup - 1) / kMaxGroup;
  const auto* weight = static_cast<const typename Kernel::Weight*>(args.weight) + block * stride;
  for (int64_t k = 0; k < args.num_inputs; k += kChunk) {
    const int64_t left = args.num_inputs - k;
    const int64_t inputs = left < kChunk ? left : kChunk;
    const int64_t next =
        left > kChunk ? kChunk * kBlockOutputs : num_blocks * stride - k * kBlockOutputs;
    const int64_t fetch = (kChunk / kFold + groups - 1) / groups * kFold;
    const Chunk<Kernel> chunk{weight + k * kBlockOutputs, stride, k, inputs, k == 0, next, fetch};
    int group = 0;
    for (int64_t r = 0, size; r < rows; r += size, ++group) {
      size = next_group(rows - r);
      group_of<Kernel>(size, num_blocks)(x + r, chunk, group, partial + r * kBlockOutputs);
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
  const int left = static_cast<int>(args.num_outputs - column);
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.out + (first_row + r) * args.num_outputs + column;
    for (int c = 0; c < kBlockOutputs && c < left; c += kLanes) {
      const float* bias = args.bias == nullptr ? nullptr : args.bias + column + c;
      finish(load(partial + r * kBlockOutputs + c), bias, out + c, left - c, args.accumulate);
    }
  }
}

// out = silu(gate) * up; a block holds 16 gates and their 16 ups.
SDE_INLINE void finish_gated_block(const LinearArgs& args, int64_t block, int64_t first_row,
                                   int64_t rows, const float* partial) {
  constexpr int kHalf = kBlockOutputs / 2;
  const int64_t features = args.num_outputs / 2;
  const int64_t feature = block * kHalf;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.out + (first_row + r) * features + feature;
    for (int c = 0; c < kHalf && feature + c < features; c += kLanes) {
      const int n = static_cast<int>(features - feature - c);
      Vec gate = load(partial + r * kBlockOutputs + c);
      Vec up = load(partial + r * kBlockOutputs + kHalf + c);
      if (args.bias != nullptr) {
        const float* bias = args.bias + feature + c;
        gate = gate + (n < kLanes ? load_partial(bias, n) : load(bias));
        up = up + (n < kLanes ? load_partial(bias + features, n) : load(bias + features));
      }
      finish(gate / (broadcast(1.0f) + exp(-gate)) * up, nullptr, out + c, n, false);
    }
  }
}

// Blocks [begin, end) of the columns for all rows.
template <class Kernel>
SDE_INLINE void linear_blocks(const LinearArgs& args, int64_t begin, int64_t end, void* scratch) {
  alignas(64) float partial[kMaxPanel * kPartialStride];
  const typename Kernel::Input* x[kLinearMaxRows];
  const int64_t num_rows = *args.num_rows;
  for (int64_t first = 0; first < num_rows; first += kLinearMaxRows) {
    const int64_t rows = num_rows - first < kLinearMaxRows ? num_rows - first : kLinearMaxRows;
    Kernel::prepare_rows(args, first, rows, scratch, x);
    for (int64_t block = begin, blocks; block < end; block += blocks) {
      blocks = next_panel(end - block, rows);
      run_panel<Kernel>(args, x, rows, block, blocks, partial);
      for (int64_t b = 0; b < blocks; ++b) {
        const auto finish_one = args.silu_gate ? finish_gated_block : finish_block;
        finish_one(args, block + b, first, rows, partial + b * kPartialStride);
      }
    }
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
