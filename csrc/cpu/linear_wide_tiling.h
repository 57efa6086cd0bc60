// How `linear` cuts its work into panels, sweeps and groups of rows with sixteen lanes: by whether
// strips lie one behind the other or four together (packed_weight.h).
#pragma once

#include "cpu/linear_tiling.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// Strips somewhere in memory: the first one's address, bytes from one to the next.
struct Strips {
  const char* first;
  int64_t stride;
};
SDE_INLINE Strips strips_from(const PackedWeight& weight, int64_t strip) {
  return {static_cast<const char*>(weight.data) + weight.strip_offset(strip),
          weight.strip_stride()};
}

// What follows a sweep: the strips after it, or what the next launch begins with.
SDE_INLINE Strips after_sweep(const PackedWeight& weight, int64_t end, const WeightShare* next) {
  if (next == nullptr || next->weight == nullptr) return strips_from(weight, end);
  return strips_from(*next->weight, next->blocks.begin * kBlockStrips);
}

// Bytes from a strip's line to its next.
template <class Kernel>
constexpr int64_t kLineStride = Kernel::kTogether * kLine;

// Size of the next group of rows, of `most` at most: as few groups as possible, all of a size.
SDE_INLINE int64_t next_group(int64_t rows_left, int64_t most) {
  const int64_t groups = (rows_left + most - 1) / most;
  return (rows_left + groups - 1) / groups;
}

// One behind the other. Up to 24 rows are one group, of as many strips as leave registers for
// weights and activations: a weight is widened once for all rows of a group, a row's input is
// loaded once for all strips.
struct ApartTiling {
  static constexpr int64_t kTogether = 1;
  static constexpr int kMaxGroup = 24;    // rows
  static constexpr int kWholeRows = 0;    // of which all sums stay in registers (run_whole)
  static constexpr int kChunkStrips = 0;  // of chunks that L1 holds (linear_wide_chunks.h)
  static constexpr int kChunkRows = kLinearMaxRows + 1;  // the fewest that are cut so

  static constexpr int strips_of_group(int64_t rows) { return rows <= 6 ? 4 : rows <= 12 ? 2 : 1; }
  static SDE_INLINE int64_t panel_end(Range blocks, int64_t rows) {
    const int64_t most = rows <= 6 || rows > kMaxGroup ? kMaxPanel : 1;
    return blocks.end - blocks.begin < most ? blocks.end : blocks.begin + most;
  }
  // One group of rows reads its strips in the order of their addresses; several find a chunk of
  // more strips in the caches.
  static SDE_INLINE int64_t strips_at_once(int64_t panel_blocks, int64_t rows) {
    return rows <= 12 || rows > kMaxGroup ? panel_blocks * kBlockStrips : 1;
  }
  static SDE_INLINE bool fetches(const PackedWeight&, int64_t) { return true; }
};

// Four together: up to six rows read them at once, in the order of their addresses; more take two
// or one of them at a time, from L2.
struct TogetherTiling : ApartTiling {
  static constexpr int64_t kTogether = kMostStripsTogether;
  static constexpr int kWholeRows = 3;

  static SDE_INLINE int64_t panel_end(Range blocks, int64_t) {
    constexpr int64_t kBlocks = kTogether / kBlockStrips;
    const int64_t end = blocks.begin / kBlocks * kBlocks + kBlocks;
    return end < blocks.end ? end : blocks.end;
  }
  static SDE_INLINE int64_t strips_at_once(int64_t panel_blocks, int64_t) {
    return panel_blocks * kBlockStrips;
  }
  // A single stream is what the hardware's own prefetcher does best (Zen 4: one row 0.74 of the
  // time with it alone), but from the caches more than kWholeRows outrun it.
  static SDE_INLINE bool fetches(const PackedWeight& weight, int64_t rows) {
    return rows > 6 || weight.num_bytes() <= kSmallWeight;
  }
};

// Either layout in chunks that L1 holds: groups of so many rows against so many strips.
struct TogetherChunks : TogetherTiling {
  static constexpr int kChunkStrips = kTogether;
  static constexpr int kChunkGroup = 6;  // 24 sums, four lines of weights, an input
  static constexpr int kChunkRows = 1;
};

// Fewer rows read four strips side by side as without chunks, which DRAM likes better (0.85).
struct ApartChunks : ApartTiling {
  static constexpr int kChunkStrips = 2;
  static constexpr int kChunkGroup = 12;
  static constexpr int kChunkRows = 7;

  static SDE_INLINE int64_t panel_end(Range blocks, int64_t rows) {
    const int64_t most = rows < kChunkRows ? kMaxPanel : kChunkStrips / kBlockStrips;
    return blocks.end - blocks.begin < most ? blocks.end : blocks.begin + most;
  }
  static SDE_INLINE int64_t strips_at_once(int64_t panel_blocks, int64_t) {
    return panel_blocks * kBlockStrips;
  }
};

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
