// How `linear` cuts its work into panels, chunks and groups of rows, and what is prefetched
// meanwhile.
#pragma once

#include "cpu/linear.h"
#include "cpu/packed_weight.h"
#include "cpu/vec.h"

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
// which the hardware prefetcher follows best); from four rows on the sums need three blocks. With
// sixteen lanes a block is two vectors, and two rows would have four sums where two dot products of
// some six cycles start in one: 85 GB/s a core at 4 GHz, less than its caches give. Two blocks have
// eight (counted, not measured).
SDE_INLINE int64_t next_panel(int64_t blocks_left, int64_t rows) {
  if ((rows == 2 || rows == 3) && kLanes < 16) return 1;
  if (rows <= 3 || blocks_left == 4) return blocks_left < 2 ? blocks_left : 2;
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

// Up to three rows are bound by memory alone, and the hardware prefetcher, which sees whole blocks
// go by, does as well without help. More rows read every other line of a block, which it does not
// follow: a pass without prefetches takes the time of memory plus that of arithmetic. The next
// chunk into L2 in the order of addresses, evenly paced, hides one behind the other; in the order
// of the passes themselves (every other line) it hides little: 9.5 against 7.0 ns a line at 6.1 ns
// of arithmetic, docs/log.md.
constexpr bool prefetches(int64_t rows) { return rows > 3; }

// Lines that a step of C vectors prefetches: what it reads, rounded up to a power of two so that
// portions fill blocks. A vector of pairs of bfloat16 is as long as one of float32.
constexpr int lines_a_step(int columns) {
  const int64_t bytes = columns * kLanes * static_cast<int64_t>(sizeof(float));
  return bytes <= kLine ? 1 : bytes <= 2 * kLine ? 2 : bytes <= 4 * kLine ? 4 : 8;
}

// The next chunk on its way into L2, in the order of its addresses: portions of 64 inputs of a
// block, spread evenly over the chains that run meanwhile. Nothing by default.
struct Fetch {
  const char* next = nullptr;  // the chunk's first block, then those after it
  int64_t block_stride = 0;    // bytes from a block to the next
  int64_t portion_bytes = 0;
  int64_t num_portions = 0;  // of a block
  int64_t total = 0;         // portions of all blocks
  int64_t capacity = 1;      // portions that the chains could fetch, if all of them did
  int64_t credit = 0;
  int64_t portion = 0;

  // Where the next chain finds the `count` portions that it is to fetch; nullptr if it is not.
  SDE_INLINE const char* take(int64_t count) {
    credit += count * total;
    if (credit < count * capacity) return nullptr;
    credit -= count * capacity;
    const char* from = next + portion * portion_bytes;
    portion += count;
    if (portion >= num_portions) {
      portion = 0;
      next += block_stride;
    }
    return from;
  }
};

// Portions that the chains of all groups of rows could fetch during a chunk of `inputs`.
SDE_INLINE int64_t fetch_capacity(int64_t rows, int64_t num_blocks, int64_t inputs) {
  int64_t portions = 0;
  for (int64_t r = 0, size; r < rows; r += size) {
    size = next_group(rows - r);
    const int columns = columns_at_once(static_cast<int>(size), static_cast<int>(num_blocks));
    portions += num_blocks * kBlockVectors / columns * lines_a_step(columns);
  }
  return portions * ((inputs + kFold - 1) / kFold);
}

// `num_blocks` blocks of a weight from block `first` and input `first_input` on, as far as a chunk
// goes, to be fetched by chains that could fetch `capacity` portions.
template <class Kernel>
Fetch fetch_blocks(const PackedWeight& weight, int64_t first, int64_t num_blocks,
                   int64_t first_input, int64_t capacity) {
  // 64 inputs of this kernel's: one line a step of a chain.
  constexpr int64_t kPortionBytes = 64 * kBlockOutputs * sizeof(typename Kernel::Weight);
  const int64_t left = weight.num_inputs - first_input;
  const int64_t chunk_bytes = (left < kChunk ? left : kChunk) * weight.input_bytes();
  Fetch fetch;
  fetch.next = static_cast<const char*>(weight.data) + first * weight.block_bytes() +
               first_input * weight.input_bytes();
  fetch.block_stride = weight.block_bytes();
  fetch.portion_bytes = kPortionBytes;
  fetch.num_portions = (chunk_bytes + kPortionBytes - 1) / kPortionBytes;
  fetch.total = fetch.num_portions * num_blocks;
  fetch.capacity = capacity;
  return fetch;
}

// What is fetched while a chunk of blocks [block, block + num_blocks) is used: the next chunk of
// the panel, the first of the next panel, or, after the last panel of a share, the first of `next`.
template <class Kernel>
Fetch next_chunk(const PackedWeight& weight, const Chunk<Kernel>& chunk, int64_t rows,
                 int64_t block, int64_t num_blocks, const WeightShare* next) {
  const int64_t end = chunk.first_input + chunk.num_inputs;
  const int64_t capacity = fetch_capacity(rows, num_blocks, chunk.num_inputs);
  if (end < weight.num_inputs)
    return fetch_blocks<Kernel>(weight, block, num_blocks, end, capacity);
  if (next == nullptr)
    return fetch_blocks<Kernel>(weight, block + num_blocks, num_blocks, 0, capacity);
  if (next->weight == nullptr) return {};
  const int64_t num_next = next_panel(next->blocks.end - next->blocks.begin, rows);
  return fetch_blocks<Kernel>(*next->weight, next->blocks.begin, num_next, 0, capacity);
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
