// Trees and row batches in exactly sized buffers, and the structure every tree must have.
#pragma once

#include "fuzz.h"
#include "sdengine/token_tree.h"

namespace fuzz {

struct DraftTreeBuffers {
  DraftTreeBuffers(int32_t batch, int32_t nodes)
      : ints(batch * (nodes + 1) * size_t{6}, -77),
        floats(batch * (nodes + 1) * size_t{4}, -77.0f),
        counts(size_t{2} * batch, 0) {
    const size_t n = static_cast<size_t>(batch) * (nodes + 1);
    int32_t* i = ints.get();
    float* f = floats.get();
    view = {i,         i + n,     i + 2 * n,    i + 3 * n,
            f,         f + n,     f + 2 * n,    f + 3 * n,
            i + 4 * n, i + 5 * n, counts.get(), counts.get() + batch,
            nodes};
  }
  Exact<int32_t> ints;
  Exact<float> floats;
  Exact<int32_t> counts;
  sdengine::DraftTreeView view;
};

struct TokenTreeBuffers {
  TokenTreeBuffers(int32_t batch, int32_t nodes)
      : words((nodes + 63) / 64 > 0 ? (nodes + 63) / 64 : 1),
        ints(batch * (nodes + 1) * size_t{8}, -77),
        floats(batch * (nodes + 1) * size_t{3}, -77.0f),
        masks(static_cast<size_t>(batch) * (nodes + 1) * words, ~uint64_t{0}),
        counts(batch, 0) {
    const size_t n = static_cast<size_t>(batch) * (nodes + 1);
    int32_t* i = ints.get();
    float* f = floats.get();
    view = {i, i + n, i + 2 * n, i + 3 * n,   i + 4 * n,    i + 5 * n, i + 6 * n, i + 7 * n,
            f, f + n, f + 2 * n, masks.get(), counts.get(), nodes,     words};
  }
  int32_t words;
  Exact<int32_t> ints;
  Exact<float> floats;
  Exact<uint64_t> masks;
  Exact<int32_t> counts;
  sdengine::TokenTreeView view;
};

struct RowBatchBuffers {
  RowBatchBuffers(int32_t batch, int32_t rows, int32_t words)
      : ints(size_t{6} * rows, -77),
        masks(static_cast<size_t>(rows) * words, ~uint64_t{0}),
        per_seq(2 * batch + 2, 0) {
    int32_t* i = ints.get();
    view = {i,
            i + rows,
            i + 2 * rows,
            i + 3 * rows,
            i + 4 * rows,
            i + 5 * rows,
            masks.get(),
            per_seq.get(),
            per_seq.get() + batch + 1,
            per_seq.get() + 2 * batch + 1,
            rows,
            words};
  }
  Exact<int32_t> ints;
  Exact<uint64_t> masks;
  Exact<int32_t> per_seq;
  sdengine::RowBatchView view;
};

// Parents before children, siblings together and in rank order, values that never rise.
inline void require_draft_structure(const sdengine::DraftTreeView& tree) {
  const int32_t count = *tree.num_nodes;
  require(count >= 0 && count <= tree.capacity, "number of nodes");
  require(tree.parents[0] == -1 && tree.depths[0] == 0, "root");
  for (int32_t i = 1; i <= count; ++i) {
    const int32_t parent = tree.parents[i];
    require(parent >= 0 && parent < i, "parent before child");
    require(tree.depths[i] == tree.depths[parent] + 1, "depth");
    require(tree.values[i] > 0.0f && tree.values[i] <= tree.values[parent],
            "value against the parent's");
    const bool is_first = tree.ranks[i] == 0;
    require(is_first || (tree.parents[i - 1] == parent && tree.ranks[i - 1] == tree.ranks[i] - 1),
            "closed siblings");
    require(is_first || tree.values[i] <= tree.values[i - 1],
            "value against the earlier sibling's");
  }
}

// Preorder, links that agree with parents, masks of ancestors.
inline void require_token_structure(const sdengine::TokenTreeView& tree) {
  const int32_t count = *tree.num_nodes;
  require(count >= 0 && count <= tree.capacity, "number of selected nodes");
  require(tree.first_child[0] == (count > 0 ? 1 : -1) && tree.next_sibling[0] == -1, "root links");
  for (int32_t i = 1; i <= count; ++i) {
    const int32_t parent = tree.parents[i];
    require(parent >= 0 && parent < i && tree.depths[i] == tree.depths[parent] + 1,
            "selected parent");
    const bool has_child = i < count && tree.parents[i + 1] == i;
    require(tree.first_child[i] == (has_child ? i + 1 : -1), "first child");
    const int32_t next = tree.next_sibling[i];
    require(next == -1 || (next > i && next <= count && tree.parents[next] == parent),
            "next sibling");
    for (int32_t w = 0; w < tree.mask_words; ++w) {
      const uint64_t own = w == (i - 1) / 64 ? uint64_t{1} << ((i - 1) % 64) : 0;
      const uint64_t above = tree.ancestor_mask[parent * tree.mask_words + w];
      require(tree.ancestor_mask[i * tree.mask_words + w] == (above | own), "ancestor mask");
    }
  }
}

}  // namespace fuzz
