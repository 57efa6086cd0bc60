// One tile of tree_attention: some rows of a sequence, one kv head and its group of query heads,
// split by split.
//
// Queries of a tile are numbered row * group + head: the heads of a row are neighbours. The
// unmasked prefix is scored and summed for all queries together; the ancestors of tree rows are
// scored together (each tree key that any row sees, once) and summed row by row.
// Sums of values are in attention_values.h.
#pragma once

#include <type_traits>

#include "cpu/attention_dots.h"
#include "cpu/tree_attention.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

constexpr int64_t kMaxMaskWords = 16;

SDE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SDE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// What one row sees, in positions of its own path: [lo, visible) is the prefix, where position =
// logical index; then tree_count ancestors (set bits in order) at positions tree_begin, tree_begin
// + 1, ...
struct RowView {
  int64_t lo;
  int64_t visible;
  int64_t tree_begin;
  int64_t tree_count;
  const int64_t* mask;

  // First ancestor inside the window.
  int64_t tree_first() const { return larger(tree_begin, lo); }
  int64_t begin() const { return lo < visible ? lo : tree_first(); }
  int64_t end() const { return tree_count > 0 ? tree_begin + tree_count : visible; }
  bool is_empty() const { return begin() >= end(); }
};

inline RowView view_row(const TreeAttentionArgs& args, int64_t row) {
  RowView view{0, args.visible_lens[row], 0, 0, args.ancestor_mask + row * args.mask_words};
  for (int64_t w = 0; w < args.mask_words; ++w) {
    view.tree_count += __builtin_popcountll(static_cast<uint64_t>(view.mask[w]));
  }
  view.tree_begin = view.visible;
  if (args.window > 0) {
    // The mask may lack ancestors outside the window: positions count back from the row itself.
    view.lo = larger(0, args.positions[row] - args.window + 1);
    view.tree_begin = larger(view.visible, args.positions[row] + 1 - view.tree_count);
  }
  return view;
}

// The result of a head of a row.
inline void write_head(const TreeAttentionArgs& args, int64_t row, int64_t head, Softmax state,
                       const float* acc) {
  const int64_t at = (row * args.num_heads + head) * args.head_dim;
  write_result(state, acc, args.head_dim, args.out, args.out_format, at);
}

// Rows [first, first + count) of a sequence and the splits any of them needs.
struct TileSpan {
  int64_t sequence;
  int64_t first_row;
  int64_t num_rows;
  int64_t first_split;
  int64_t last_split;  // exclusive

  int64_t num_splits() const { return last_split - first_split; }
};

template <class T>
class Tile {
  static constexpr bool kPairs = kHasDots && std::is_same_v<T, uint16_t>;
  using Keys = std::conditional_t<kPairs, KeyPairs, PackedKeys<T>>;
  using Probs = std::conditional_t<kPairs, Halves, Floats>;

 public:
  explicit Tile(const TreeAttentionArgs& args)
      : args_(args),
        group_(args.num_heads / args.num_kv_heads),
        stride_(padded(args.head_dim)),
        plane_(args.num_kv_heads * args.block_size * args.head_dim) {}

  int64_t num_queries() const { return span_.num_rows * group_; }

  // Reads and scales the queries; forgets earlier results.
  void start(const TileSpan& span, int64_t kv_head);

  // Computes one split: sums() and accumulators() hold it afterwards.
  void run_split(int64_t split);

  // Adds the last split to the running result.
  void merge_split() {
    for (int64_t q = 0; q < num_queries(); ++q) {
      merge(&state_[q], state_acc_ + q * stride_, sums_[q], acc_ + q * stride_, stride_);
    }
  }

  // Stores the last split for merging by whoever comes last: per query max, sum, then the
  // accumulator.
  void save_split(float* partial) const {
    for (int64_t q = 0; q < num_queries(); ++q) {
      float* to = partial + q * (stride_ + 16);
      to[0] = sums_[q].max;
      to[1] = sums_[q].sum;
      for (int64_t d = 0; d < stride_; d += kLanes)
        store(to + 16 + d, load(acc_ + q * stride_ + d));
    }
  }

  void write_results() const {
    for (int64_t q = 0; q < num_queries(); ++q) {
      const int64_t head = kv_head_ * group_ + q % group_;
      write_head(args_, span_.first_row + q / group_, head, state_[q], state_acc_ + q * stride_);
    }
  }

 private:
  const T* key_at(int64_t index) const {
    const int64_t block = table_[index / args_.block_size];
    return keys_ + block * 2 * plane_ + index % args_.block_size * args_.head_dim;
  }

  void find_prefix(int64_t split_begin);
  bool find_ancestors(int64_t split_begin);
  void score_prefix();
  void score_ancestors();
  void sum_probabilities(int64_t split_begin);
  void accumulate_prefix();
  void accumulate_subtile(int64_t first, int64_t last);
  template <class Add>
  void accumulate_range(int64_t first, int64_t last, Add add);
  void accumulate_ancestors();
  void accumulate_pairs(int64_t first, int64_t last);
  void accumulate_lone(int64_t query, int64_t count, int64_t column, const T* value);
  int64_t pair_ancestors(int64_t row, const T** values) const;

  const TreeAttentionArgs& args_;
  const int64_t group_;
  const int64_t stride_;  // floats per query in the buffers
  const int64_t plane_;   // elements from a key to its value
  TileSpan span_{};
  int64_t kv_head_ = 0;
  const T* keys_ = nullptr;  // of this kv head
  const int32_t* table_ = nullptr;

  RowView rows_[kMaxQueries];
  Softmax state_[kMaxQueries];
  Softmax sums_[kMaxQueries];

  // Of the current split, in columns: position - first position of the split.
  int64_t prefix_begin_ = 0, prefix_end_ = 0;  // of any row
  int64_t row_begin_[kMaxQueries];             // prefix of each row
  int64_t row_end_[kMaxQueries];
  int64_t tree_column_[kMaxQueries];  // column of the first ancestor in this split
  int64_t tree_count_[kMaxQueries];   // ancestors in this split
  bool shares_pair_[kMaxQueries];     // whether the first of them and the last of the prefix do
  uint16_t tree_keys_[kMaxQueries][kSplit];
  int64_t prefix_ahead_ = 0;  // end of the keys that are looked up: one subtile more
  const T* prefix_keys_[kSplit + kSubtile];

  alignas(64) float queries_[kMaxQueries * kMaxHeadDim];
  alignas(64) float scores_[kMaxQueries * kSplit];
  alignas(64) float acc_[kMaxQueries * kMaxHeadDim];
  alignas(64) float state_acc_[kMaxQueries * kMaxHeadDim];
  alignas(
      64) float packed_[kSubtile * kMaxHeadDim];  // keys transposed, or values widened or paired
};

template <class T>
void Tile<T>::start(const TileSpan& span, int64_t kv_head) {
  span_ = span;
  kv_head_ = kv_head;
  keys_ = static_cast<const T*>(args_.kv_cache) + kv_head * args_.block_size * args_.head_dim;
  table_ = args_.block_tables + span.sequence * args_.max_blocks;
  const int64_t row_width = (args_.num_heads + 2 * args_.num_kv_heads) * args_.head_dim;
  const float scale = args_.scale * 1.44269504088896341f;  // scores in units of log 2
  for (int64_t r = 0; r < span.num_rows; ++r) rows_[r] = view_row(args_, span.first_row + r);
  for (int64_t q = 0; q < num_queries(); ++q) {
    const float* from = args_.qkv + (span.first_row + q / group_) * row_width +
                        (kv_head * group_ + q % group_) * args_.head_dim;
    if constexpr (kPairs) {
      round_query(from, scale, args_.head_dim, queries_ + q * stride_);
    } else {
      for (int64_t d = 0; d < args_.head_dim; ++d) queries_[q * stride_ + d] = from[d] * scale;
    }
    state_[q] = {0.0f, 0.0f};
  }
}

template <class T>
void Tile<T>::run_split(int64_t split) {
  const int64_t split_begin = split * kSplit;
  find_prefix(split_begin);
  score_prefix();
  const bool has_ancestors = args_.mask_words > 0 && find_ancestors(split_begin);
  if (has_ancestors) score_ancestors();
  sum_probabilities(split_begin);
  for (int64_t i = 0; i < num_queries() * stride_; i += kLanes) store(acc_ + i, zeros());
  accumulate_prefix();
  if (has_ancestors) accumulate_ancestors();
}

// Which columns each row sees without a mask, and where their keys lie.
template <class T>
void Tile<T>::find_prefix(int64_t split_begin) {
  prefix_begin_ = kSplit;
  prefix_end_ = 0;
  prefix_ahead_ = 0;
  for (int64_t r = 0; r < span_.num_rows; ++r) {
    row_begin_[r] = larger(0, rows_[r].lo - split_begin);
    row_end_[r] = smaller(kSplit, rows_[r].visible - split_begin);
    if (row_begin_[r] >= row_end_[r]) row_begin_[r] = row_end_[r] = 0;
    if (row_end_[r] == 0) continue;
    prefix_begin_ = smaller(prefix_begin_, row_begin_[r]);
    prefix_end_ = larger(prefix_end_, row_end_[r]);
    prefix_ahead_ =
        larger(prefix_ahead_, smaller(kSplit + kSubtile, rows_[r].visible - split_begin));
  }
  for (int64_t c = prefix_begin_; c < prefix_ahead_;) {
    const int64_t index = split_begin + c;
    const int64_t in_block = args_.block_size - index % args_.block_size;
    const T* key = key_at(index);
    for (const int64_t end = smaller(prefix_ahead_, c + in_block); c < end;
         ++c, key += args_.head_dim) {
      prefix_keys_[c] = key;
    }
  }
}

template <class T>
void Tile<T>::score_prefix() {
  for (int64_t c = prefix_begin_ / kSubtile * kSubtile; c < prefix_end_; c += kSubtile) {
    const T* keys[kSubtile];
    for (int64_t i = 0; i < kSubtile; ++i) {  // columns nobody sees repeat a visible key
      keys[i] = prefix_keys_[larger(prefix_begin_, smaller(prefix_end_ - 1, c + i))];
    }
    RowFetch<T> next_keys(prefix_keys_, c + kSubtile, smaller(c + 2 * kSubtile, prefix_ahead_), 0,
                          args_.head_dim);
    RowFetch<T> values(prefix_keys_, larger(c, prefix_begin_), smaller(c + kSubtile, prefix_end_),
                       plane_, args_.head_dim);
    const int64_t count = smaller(kSubtile, prefix_end_ - c);
    const auto packed = pack_keys(keys, count, args_.head_dim, packed_, [&] {
      next_keys.step();
      values.step();
    });
    score_all(queries_, num_queries(), stride_, Keys{packed.data}, count, args_.head_dim,
              scores_ + c, kSplit);
  }
}

// Lists the tree keys of each row whose positions fall into this split; false when there are none.
template <class T>
bool Tile<T>::find_ancestors(int64_t split_begin) {
  bool found = false;
  for (int64_t r = 0; r < span_.num_rows; ++r) {
    const RowView& row = rows_[r];
    tree_count_[r] = 0;
    shares_pair_[r] = false;
    tree_column_[r] = larger(0, row.tree_first() - split_begin);
    if (row.tree_count == 0 || row.tree_begin >= split_begin + kSplit ||
        row.tree_begin + row.tree_count <= split_begin) {
      continue;
    }
    int64_t column = row.tree_begin - split_begin;
    for (int64_t w = 0; w < args_.mask_words; ++w) {
      for (uint64_t bits = static_cast<uint64_t>(row.mask[w]); bits != 0;
           bits &= bits - 1, ++column) {
        if (column < tree_column_[r] || column >= kSplit) continue;
        tree_keys_[r][tree_count_[r]++] = static_cast<uint16_t>(w * 64 + __builtin_ctzll(bits));
      }
    }
    if (tree_count_[r] == 0) continue;
    found = true;
    if (kPairs && tree_column_[r] % 2 == 1 && row_end_[r] == tree_column_[r]) {
      shares_pair_[r] = true;
      --row_end_[r];
    }
  }
  return found;
}

// Scores every tree key that some row sees against all queries, then hands each row its own.
template <class T>
void Tile<T>::score_ancestors() {
  uint64_t used[kMaxMaskWords] = {};
  for (int64_t r = 0; r < span_.num_rows; ++r) {
    for (int64_t t = 0; t < tree_count_[r]; ++t)
      used[tree_keys_[r][t] / 64] |= uint64_t{1} << tree_keys_[r][t] % 64;
  }
  int64_t found = 0;
  int8_t slot_of[kMaxMaskWords * 64];
  const T* keys[kSubtile];
  alignas(64) float scores[kMaxQueries * kSubtile];
  const auto flush = [&] {
    for (int64_t i = found; i % 8 != 0; ++i) keys[i] = keys[0];
    const auto packed = pack_keys(keys, found, args_.head_dim, packed_, [] {});
    score_all(queries_, num_queries(), stride_, Keys{packed.data}, found, args_.head_dim, scores,
              kSubtile);
    for (int64_t r = 0; r < span_.num_rows; ++r) {
      for (int64_t t = 0; t < tree_count_[r]; ++t) {
        const int slot = slot_of[tree_keys_[r][t]];
        if (slot < 0) continue;
        for (int64_t q = r * group_; q < (r + 1) * group_; ++q) {
          scores_[q * kSplit + tree_column_[r] + t] = scores[q * kSubtile + slot];
        }
      }
    }
    found = 0;
    for (int64_t j = 0; j < args_.mask_words * 64; ++j) slot_of[j] = -1;
  };
  for (int64_t j = 0; j < args_.mask_words * 64; ++j) slot_of[j] = -1;
  for (int64_t w = 0; w < args_.mask_words; ++w) {
    for (uint64_t bits = used[w]; bits != 0; bits &= bits - 1) {
      const int64_t key = w * 64 + __builtin_ctzll(bits);
      slot_of[key] = static_cast<int8_t>(found);
      keys[found++] = key_at(args_.tree_starts[span_.sequence] + key);
      if (found == kSubtile) flush();
    }
  }
  if (found > 0) flush();
}

template <class T>
void Tile<T>::sum_probabilities(int64_t split_begin) {
  for (int64_t r = 0; r < span_.num_rows; ++r) {
    const int64_t begin = larger(0, rows_[r].begin() - split_begin);
    const int64_t end = smaller(kSplit, rows_[r].end() - split_begin);
    for (int64_t q = r * group_; q < (r + 1) * group_; ++q) {
      sums_[q] = begin < end ? softmax_split<Probs>(scores_ + q * kSplit, begin, end)
                             : Softmax{0.0f, 0.0f};
    }
  }
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
