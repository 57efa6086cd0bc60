// Keys transposed for scoring, and what is fetched from memory meanwhile.
#pragma once

#include <type_traits>

#include "cpu/transpose.h"
#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

// Keys transposed at a time: 16 or 32 KiB of floats at head_dim 128, half of L1 and more. Fewer
// than four vectors would leave one or two queries without enough independent sums.
constexpr int kSubtile = kLanes == 16 ? 64 : 32;

// Keys of T, transposed: float as [dim][kSubtile], bf16 as [dim / 2][kSubtile] pairs that are
// widened where they are used. That hides behind the multiply-adds and halves what a transposition
// stores: attention takes 0.92-0.99 of the time. float16, which no shift widens, becomes float.
template <class T>
struct PackedKeys {
  static constexpr int kDims = std::is_same_v<T, uint16_t> ? 2 : 1;  // that stand together
  const float* data;

  // Dim d of kLanes keys from key i on.
  SDE_INLINE Vec at(int64_t d, int64_t i) const {
    const Vec together = load(data + d / kDims * kSubtile + i);
    if constexpr (kDims == 1) return together;
    if (d % 2 == 0) return from_bits(shift_left<16>(bits_of(together)));
    return from_bits(bits_of(together) & broadcast_int(static_cast<int32_t>(0xffff0000u)));
  }
};

// Transposes `count` keys, rounded up to a multiple of 8, into `packed`; what it held of the others
// stays. Calls meanwhile() for every 8 dims of 8 keys.
template <class T, class Meanwhile>
SDE_INLINE PackedKeys<T> pack_keys(const T* const* keys, int64_t count, int64_t head_dim,
                                   float* packed, Meanwhile meanwhile) {
  for (int64_t group = 0; group < count; group += 8) {
    const T* first = keys[group];
    float* to = packed + group;
    // Eight different keys so far apart at most lie in one block, one after the other.
    const bool are_neighbours = keys[group + 7] - first == 7 * head_dim;
    for (int64_t d = 0; d < head_dim; d += 8) meanwhile();
    if (are_neighbours) {
      for (int64_t d = 0; d < head_dim; d += 8, to += 8 / PackedKeys<T>::kDims * kSubtile) {
        transpose_8x8(NeighbourRows<T>{first, head_dim}, d, to, kSubtile);
      }
    } else {
      for (int64_t d = 0; d < head_dim; d += 8, to += 8 / PackedKeys<T>::kDims * kSubtile) {
        transpose_8x8(RowPointers<T>{keys + group}, d, to, kSubtile);
      }
    }
  }
  return {packed};
}

// Rows of head_dim elements on their way into L2: as many elements a step as are transposed
// meanwhile, so that kSubtile rows are fetched while kSubtile keys are packed. Without it a short
// context takes the time of memory plus that of arithmetic, docs/log.md.
template <class T>
class RowFetch {
 public:
  // Rows [begin, end) of `rows`, `shift` elements further on; none if end <= begin.
  RowFetch(const T* const* rows, int64_t begin, int64_t end, int64_t shift, int64_t head_dim)
      : next_(rows + begin), num_left_(end - begin), shift_(shift), head_dim_(head_dim) {}

  SDE_INLINE void step() {
    if (num_left_ <= 0) return;
    const T* p = *next_ + shift_ + offset_;
    for (size_t line = 0; line < kStep * sizeof(T) / kLineBytes; ++line) {
      __builtin_prefetch(p + line * kLineBytes / sizeof(T), 0, 2);
    }
    offset_ += kStep;
    if (offset_ < head_dim_) return;
    offset_ -= head_dim_;
    ++next_;
    --num_left_;
  }

 private:
  static constexpr int64_t kStep = 64;  // elements
  static constexpr int64_t kLineBytes = 64;

  const T* const* next_;
  int64_t num_left_;
  int64_t shift_;
  int64_t head_dim_;
  int64_t offset_ = 0;
};

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
