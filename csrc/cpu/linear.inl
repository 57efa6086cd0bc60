// The loops of `linear`, written once for all instruction sets; see linear.h for what they promise.
//
// A worker walks its share of the columns in panels of blocks, and a panel in sweeps of strips that
// are read side by side; within a sweep, chunks of K; over each chunk run all groups of rows, R x C
// vectors of sums in registers. A weight comes from memory once, whatever the number of rows (up to
// kLinearMaxRows), and is used from the caches by all groups of rows; meanwhile the chains of the
// groups prefetch what comes next (linear_narrow.h and linear_wide_chunks.h: all of them parts of
// the next chunk; linear_wide.h: the first group what it reads next itself). After a share's last
// chunk comes the first of the worker's next launch: the layers of a small model have so few chunks
// that a quarter of the weights would come unannounced.
//
//   sweep              chunk       group of R rows        pass: C vectors
//   [K, 16 S columns]  [512, 16 S] [R, 512] x [512, 16 S] [R, 512] x [512, C * lanes]
#include "cpu/vec.h"

#if defined(SDENGINE_SIXTEEN_LANES)
#include "cpu/linear_wide.h"
#else
#include "cpu/linear_narrow.h"
#endif

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

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
    float* out = static_cast<float*>(args.out) + (first_row + r) * args.weight.num_outputs + column;
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
    for (int c = 0; c < kStripOutputs && feature + c < features; c += kLanes) {
      const int n = static_cast<int>(features - feature - c);
      Vec gate = load(partial_at(partial, r, c / kLanes));
      Vec up = load(partial_at(partial, r, kStripVectors + c / kLanes));
      if (args.bias != nullptr) {
        const float* bias = args.bias + feature + c;
        gate = gate + load_up_to(bias, n);
        up = up + load_up_to(bias + features, n);
      }
      const Vec value = gate / (broadcast(1.0f) + exp(-gate)) * up;
      const int64_t at = (first_row + r) * features + feature + c;
      store_activation(args.out, args.out_format, at, value, n);
    }
  }
}

// One panel of columns for up to kLinearMaxRows rows; `next` follows the last one of a share.
template <class Kernel>
void run_panel(const LinearArgs& args, const RowsOf<Kernel>& x, int64_t first_row, int64_t rows,
               Range blocks, const WeightShare* next, float* partial) {
  const int64_t strips = (blocks.end - blocks.begin) * kBlockStrips;
  const int64_t at_once = strips_at_once<Kernel>(blocks.end - blocks.begin, rows);
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
  const int64_t num_rows = *args.num_rows;
  for (int64_t first = 0; first < num_rows; first += kLinearMaxRows) {
    const int64_t rows = num_rows - first < kLinearMaxRows ? num_rows - first : kLinearMaxRows;
    const RowsOf<Kernel> x = prepare_rows<Kernel>(args, first, rows, scratch);
    // More rows than that read the share again.
    const WeightShare after = first + rows < num_rows ? WeightShare{&args.weight, share} : next;
    for (Range panel{share.begin, share.begin}; panel.begin < share.end; panel.begin = panel.end) {
      panel.end = panel_end<Kernel>({panel.begin, share.end}, rows);
      run_panel<Kernel>(args, x, first, rows, panel, panel.end == share.end ? &after : nullptr,
                        partial);
    }
  }
}

// The same for a weight of any format.
SDE_INLINE void linear_blocks_of_format(const LinearArgs& args, Range share,
                                        const WeightShare& next, void* scratch) {
  switch (args.weight.format) {
    case Format::kFloat32:
      return linear_blocks<Fp32>(args, share, next, scratch);
    case Format::kBfloat16:
      return linear_blocks<WidenedBf16>(args, share, next, scratch);
    case Format::kFloat16:
      return linear_blocks<WidenedHalf>(args, share, next, scratch);
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
