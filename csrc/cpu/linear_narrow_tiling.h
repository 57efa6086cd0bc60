// How `linear` cuts its work into panels, chunks and groups of rows with four or eight lanes, and
// what is prefetched meanwhile.
#pragma once

#include "cpu/linear_tiling.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

constexpr int kMaxGroup = 6;  // rows

// One chunk of the weights of a sweep: strips that are read side by side.
template <class Kernel>
struct Chunk {
  const typename Kernel::Weight* weight;
  int64_t strip_stride;  // elements from a strip to the next
  int64_t first_input;
  int64_t num_inputs;
  bool is_first;
};

// Vectors of columns that R rows take at once, of a sweep of so many strips: as many sums as leave
// registers for weights and activations. Sixteen registers hold 12 sums. A multiply-add takes 4
// cycles and two start in one: 8 sums cover that.
constexpr int columns_at_once(int rows, int strips) {
  const int vectors = strips * kStripVectors;
  if (kLanes == 8 && rows == 1) return vectors;
  return rows <= 3 && strips > 1 ? 4 : 2;
}

// End of the first panel of `blocks`: what is finished together. One row has sums enough in two
// only.
template <class Kernel>
SDE_INLINE int64_t panel_end(Range blocks, int64_t rows) {
  const int64_t most = rows == 1 ? kMaxPanel : 1;
  return blocks.end - blocks.begin < most ? blocks.end : blocks.begin + most;
}

// Strips of a panel that are read side by side. From four rows on one has sums enough, and memory
// is read in the order of its addresses: 0.7 to 0.9 of the time of other orders (docs/log.md).
template <class Kernel>
SDE_INLINE int64_t strips_at_once(int64_t panel_blocks, int64_t rows) {
  return rows > 3 ? 1 : panel_blocks * kBlockStrips;
}

// Size of the next group of rows: as few groups as possible, and 6, 4 and 5 rows (in this order)
// fill the registers best.
SDE_INLINE int64_t next_group(int64_t rows_left) {
  return rows_left <= 6 ? rows_left : rows_left <= 8 ? 4 : rows_left == 9 ? 5 : 6;
}

// Whether `rows` rows fetch what comes next. Up to three are bound by memory, and from DRAM the
// hardware prefetcher does better without help (fetching takes 1.1 of the time); from the caches,
// where the layers of a small model stay, it takes 0.8, and 0.95 with one row. With more rows a
// pass without it takes the time of memory plus that of arithmetic.
SDE_INLINE bool fetches(const PackedWeight& weight, int64_t rows) {
  return rows > 3 || weight.num_bytes() <= kSmallWeight;
}

// Lines that a step of C vectors prefetches: what it reads, rounded up to a power of two so that
// portions fill strips. A vector of pairs of bfloat16 is as long as one of float32.
constexpr int lines_a_step(int columns) {
  const int64_t bytes = columns * kLanes * static_cast<int64_t>(sizeof(float));
  return bytes <= kLine ? 1 : bytes <= 2 * kLine ? 2 : 4;
}

// The next chunk on its way into L2, in the order of its addresses: portions that one chain fetches
// with a line a step, spread evenly over the chains that run meanwhile. Nothing by default.
struct Fetch {
  const char* next = nullptr;  // the chunk in the first strip of a sweep, then in those after it
  int64_t strip_stride = 0;    // bytes from a strip to the next
  int64_t portion_bytes = 0;
  int64_t num_portions = 0;  // of a strip
  int64_t total = 0;         // portions of all strips
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
      next += strip_stride;
    }
    return from;
  }
};

// Portions that the chains of all groups of rows could fetch during a chunk of `inputs`.
SDE_INLINE int64_t fetch_capacity(int64_t rows, int64_t strips, int64_t inputs) {
  int64_t portions = 0;
  for (int64_t r = 0, size; r < rows; r += size) {
    size = next_group(rows - r);
    const int columns = columns_at_once(static_cast<int>(size), static_cast<int>(strips));
    portions += strips * kStripVectors / columns * lines_a_step(columns);
  }
  return portions * ((inputs + kFold - 1) / kFold);
}

// Inputs [first_input, first_input + kChunk) of `strips` strips from strip `first` of a weight on,
// as far as K goes, to be fetched by chains that could fetch `capacity` portions.
template <class Kernel>
Fetch fetch_strips(const PackedWeight& weight, int64_t first, int64_t strips, int64_t first_input,
                   int64_t capacity) {
  const int64_t left = weight.num_inputs - first_input;
  const int64_t chunk_bytes = (left < kChunk ? left : kChunk) * weight.input_bytes();
  Fetch fetch;
  fetch.next = static_cast<const char*>(weight.data) + first * weight.strip_bytes() +
               first_input * weight.input_bytes();
  fetch.strip_stride = weight.strip_bytes();
  fetch.portion_bytes = kFold / Kernel::kDepth * kLine;
  fetch.num_portions = (chunk_bytes + fetch.portion_bytes - 1) / fetch.portion_bytes;
  fetch.total = fetch.num_portions * strips;
  fetch.capacity = capacity;
  return fetch;
}

// What is fetched while a chunk of strips [strip, strip + strips) is used: the next chunk of these,
// the first of the strips after them, or, after the last of a share, the first of `next`.
template <class Kernel>
Fetch next_chunk(const PackedWeight& weight, const Chunk<Kernel>& chunk, int64_t rows,
                 int64_t strip, int64_t strips, const WeightShare* next) {
  const int64_t end = chunk.first_input + chunk.num_inputs;
  const int64_t capacity = fetch_capacity(rows, strips, chunk.num_inputs);
  if (end < weight.num_inputs) return fetch_strips<Kernel>(weight, strip, strips, end, capacity);
  if (next == nullptr) return fetch_strips<Kernel>(weight, strip + strips, strips, 0, capacity);
  if (next->weight == nullptr) return {};
  const int64_t blocks = panel_end<Kernel>(next->blocks, rows) - next->blocks.begin;
  return fetch_strips<Kernel>(*next->weight, next->blocks.begin * kBlockStrips,
                              strips_at_once<Kernel>(blocks, rows), 0, capacity);
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
