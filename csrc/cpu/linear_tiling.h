// The units in which `linear` cuts its work, and the partial sums between them.
#pragma once

#include "cpu/linear.h"
#include "cpu/packed_weight.h"
#include "cpu/vec.h"

// Rows and columns of a step, unrolled before arrays of sums are turned into registers: gcc 12
// keeps 12 x 2 in memory otherwise.
#define SDE_UNROLL _Pragma("GCC unroll 24")

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

constexpr int64_t kChunk = 512;  // inputs. Longer gains nothing, 256 costs 1-2%
constexpr int64_t kFold =
    128;  // inputs in one chain of additions; then it is folded into the partial sums
constexpr int kStripVectors = kStripOutputs / kLanes;
constexpr int kMaxPanel = 2;  // blocks
// Partial sums: [strip of the panel][row][16]. No multiple of 4096 bytes from one strip to the
// next, or all of them, stores on their way included, share a few lines of the cache (Zen 4,
// weights in the last-level cache: 4 to 6 rows take 0.89 to 0.97 of the time).
constexpr int64_t kPartialStride = (kLinearMaxRows + 5) * kStripOutputs;
constexpr int64_t kLine = kStripLine;  // bytes
constexpr int64_t kSmallWeight =
    2 << 20;  // bytes. Layers of larger ones come from DRAM: there are many of them

// The activations that make output row `row`.
template <class T>
SDE_INLINE const T* input_row(const LinearArgs& args, int64_t row) {
  const int64_t index = args.rows == nullptr ? row : args.rows[row];
  return static_cast<const T*>(args.x) + index * args.weight.num_inputs;
}

// Vector v of a sweep, in partial sums [strip][row][16].
template <class T>
SDE_INLINE T* partial_at(T* partial, int64_t row, int v) {
  return partial + v / kStripVectors * kPartialStride + row * kStripOutputs +
         v % kStripVectors * kLanes;
}

template <int R, int C>
SDE_INLINE void clear(Vec (&sums)[R][C]) {
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    SDE_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = zeros();
  }
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

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
