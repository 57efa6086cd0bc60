// Values of a tile of tree_attention: sums over the prefix for all its queries together, over
// ancestors row by row; with dot products two columns at a time.
#pragma once

#include "cpu/attention_tile.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

template <class T>
void Tile<T>::accumulate_prefix() {
  for (int64_t c = prefix_begin_; c < prefix_end_;) {
    const int64_t last = smaller(prefix_end_, (c / kSubtile + 1) * kSubtile);
    accumulate_subtile(c, last);
    c = last;
  }
}

// Values of columns [first, last): sixteen bits are widened once when enough queries share them.
template <class T>
void Tile<T>::accumulate_subtile(int64_t first, int64_t last) {
  if constexpr (kPairs) return accumulate_pairs(first, last);
  const T* values[kSubtile];
  for (int64_t c = first; c < last; ++c) values[c - first] = prefix_keys_[c] + plane_;
  const auto add_from = [&](auto rows) {
    return [=](int64_t q, int64_t count, int64_t begin, int64_t end) {
      accumulate(count, scores_ + q * kSplit + begin, decltype(rows){rows.rows + (begin - first)},
                 end - begin, args_.head_dim, acc_ + q * stride_, stride_);
    };
  };
  if (sizeof(T) == sizeof(float) || num_queries() <= 2 * kQueryBlock ||
      args_.head_dim % kLanes != 0) {
    accumulate_range(first, last, add_from(ValueRows<T>{values}));
    return;
  }
  const float* wide[kSubtile];
  for (int64_t i = 0; i < last - first; ++i) {
    float* to = packed_ + i * stride_;
    for (int64_t d = 0; d < args_.head_dim; d += kLanes)
      store(to + d, load_as_float(values[i] + d));
    wide[i] = to;
  }
  accumulate_range(first, last, add_from(ValueRows<float>{wide}));
}

// The same two columns at a time: pairs that enough queries share are made once.
template <class T>
void Tile<T>::accumulate_pairs(int64_t first, int64_t last) {
  const T* values[kSubtile];
  const int64_t origin = first - first % 2;
  for (int64_t c = first; c < last; ++c) values[c - origin] = prefix_keys_[c] + plane_;
  const bool is_paired = num_queries() > 2 * kQueryBlock && args_.head_dim % kLanes == 0;
  for (int64_t c = origin + 2 * (first - origin); is_paired && c + 1 < last; c += 2) {
    const T* const* rows = values + (c - origin);
    float* to = packed_ + (c - origin) / 2 * stride_;
    for (int64_t d = 0; d < args_.head_dim; d += kLanes) {
      store(to + d, pair_rows(rows[0] + d, rows[1] + d));
    }
  }
  accumulate_range(first, last, [&](int64_t q, int64_t count, int64_t begin, int64_t end) {
    if (begin % 2 == 1) {
      accumulate_lone(q, count, begin, values[begin - origin]);
      ++begin;
    }
    const int64_t num_pairs = end > begin ? (end - begin) / 2 : 0;
    const float* probs = scores_ + q * kSplit + begin / 2;
    float* acc = acc_ + q * stride_;
    if (is_paired) {
      const PairedValues pairs{packed_ + (begin - origin) / 2 * stride_, stride_};
      accumulate(count, probs, pairs, num_pairs, args_.head_dim, acc, stride_);
    } else {
      const ValuePairs pairs{values + (begin - origin)};
      accumulate(count, probs, pairs, num_pairs, args_.head_dim, acc, stride_);
    }
    if (begin < end && end % 2 == 1) accumulate_lone(q, count, end - 1, values[end - 1 - origin]);
  });
}

// A column whose partner these queries do not see.
template <class T>
void Tile<T>::accumulate_lone(int64_t query, int64_t count, int64_t column, const T* value) {
  const T* rows[2] = {value, value};
  accumulate(count, scores_ + query * kSplit + column / 2, ValuePairs{rows}, 1, args_.head_dim,
             acc_ + query * stride_, stride_);
}

// Calls add(q, count, begin, end): a block of queries over the columns all of them see, columns
// that only some see one query at a time. Of pairs of columns none is seen in part by the others.
template <class T>
template <class Add>
void Tile<T>::accumulate_range(int64_t first, int64_t last, Add add_columns) {
  const auto add = [&](int64_t q, int64_t count, int64_t begin, int64_t end) {
    if (begin < end) add_columns(q, count, begin, end);
  };
  for (int64_t q = 0; q < num_queries(); q += kQueryBlock) {
    const int64_t count = smaller(kQueryBlock, num_queries() - q);
    const int64_t first_row = q / group_, last_row = (q + count - 1) / group_;
    int64_t begin = first, end = last;
    bool is_ragged = false;
    for (int64_t r = first_row; r <= last_row; ++r) {
      is_ragged = is_ragged || row_begin_[r] > first || row_end_[r] < last;
      begin = larger(begin, row_begin_[r]);
      end = smaller(end, row_end_[r]);
    }
    if (!is_ragged) {
      add(q, count, first, last);
      continue;
    }
    if constexpr (kPairs) {
      begin += begin % 2;
      end -= end % 2;
    }
    if (begin > end) begin = end = last;  // nothing in common
    for (int64_t i = q; i < q + count; ++i) {
      const int64_t r = i / group_;
      add(i, 1, larger(first, row_begin_[r]), smaller(begin, row_end_[r]));
    }
    add(q, count, begin, end);
    for (int64_t i = q; i < q + count; ++i) add(i, 1, end, smaller(last, row_end_[i / group_]));
  }
}

template <class T>
void Tile<T>::accumulate_ancestors() {
  for (int64_t r = 0; r < span_.num_rows; ++r) {
    if (tree_count_[r] == 0) continue;
    const T* values[kSplit + 2];
    const int64_t begin = tree_column_[r] % 2, count = tree_count_[r];
    for (int64_t t = 0; t < count; ++t) {
      values[begin + t] = key_at(args_.tree_starts[span_.sequence] + tree_keys_[r][t]) + plane_;
    }
    const auto add = [&](int64_t offset, int64_t number, auto rows) {
      for (int64_t head = 0; head < group_; head += kQueryBlock) {
        const int64_t q = r * group_ + head;
        accumulate(smaller(kQueryBlock, group_ - head), scores_ + q * kSplit + offset, rows, number,
                   args_.head_dim, acc_ + q * stride_, stride_);
      }
    };
    if constexpr (kPairs) {
      add(tree_column_[r] / 2, pair_ancestors(r, values), ValuePairs{values});
    } else {
      add(tree_column_[r], count, ValueRows<T>{values + begin});
    }
  }
}

// Completes pairs of the ancestors' values, which begin at values[tree_column_[row] % 2]; returns
// how many pairs they are.
template <class T>
int64_t Tile<T>::pair_ancestors(int64_t row, const T** values) const {
  const int64_t column = tree_column_[row], begin = column % 2, end = begin + tree_count_[row];
  if (begin == 1) values[0] = shares_pair_[row] ? prefix_keys_[column - 1] + plane_ : values[1];
  if (end % 2 == 1) values[end] = values[end - 1];
  return (end + 1) / 2;
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
