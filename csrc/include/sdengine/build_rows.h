// Rows of a forward pass: each sequence's pending tokens as a chain, its tree nodes on top.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"
#include "sdengine/token_tree.h"

namespace sdengine {

struct BuildRowsArgs {
  const int32_t* pending_tokens;  // [N_p], packed
  const int32_t* cu_pending;      // [B + 1]
  const int32_t* computed_lens;   // [B], tokens whose KV is in the cache
  const int32_t* wants_logits;    // [B]
  const int32_t* num_seqs;        // [1]
  BlockTablesView tables;
  bool has_tree;
  TokenTreeView tree;
  RowBatchView rows;
  int32_t* logit_rows;  // [N]
  int32_t* cu_logits;   // [B + 1]
  int32_t* num_logits;  // [1]
};

namespace build {

// Walks logical indices upwards through a block table without a division per row.
class SlotCursor {
 public:
  SDE_HD SlotCursor(const BlockTablesView& tables, int64_t b, int32_t logical)
      : blocks_(tables.blocks + b * tables.max_blocks + logical / tables.block_size),
        block_size_(tables.block_size),
        offset_(logical % tables.block_size) {}

  SDE_HD int32_t next() {
    const int32_t slot = *blocks_ * block_size_ + offset_;
    if (++offset_ == block_size_) {
      offset_ = 0;
      ++blocks_;
    }
    return slot;
  }

 private:
  const int32_t* blocks_;
  int32_t block_size_;
  int32_t offset_;
};

SDE_HD inline void write_row(const RowBatchView& rows, int32_t row, int32_t token, int32_t position,
                             int32_t slot, int64_t b, int32_t node, int32_t visible_len) {
  rows.tokens[row] = token;
  rows.positions[row] = position;
  rows.slots[row] = slot;
  rows.row_seq[row] = static_cast<int32_t>(b);
  rows.row_node[row] = node;
  rows.visible_lens[row] = visible_len;
}

SDE_HD inline uint64_t* row_mask(const RowBatchView& rows, int32_t row) {
  return rows.ancestor_mask + static_cast<int64_t>(row) * rows.mask_words;
}

// What a sequence adds to the batch.
struct RowCounts {
  int32_t pending;
  int32_t nodes;
  int32_t logits;
};

SDE_HD inline RowCounts row_counts(const BuildRowsArgs& args, int64_t b) {
  const int32_t pending = args.cu_pending[b + 1] - args.cu_pending[b];
  const bool has_logits = args.wants_logits[b] != kNoLogits && pending > 0;
  const bool has_nodes = has_logits && args.has_tree && args.wants_logits[b] == kRootAndNodes;
  const int32_t nodes = has_nodes ? args.tree.num_nodes[b] : 0;
  return {pending, nodes, has_logits ? 1 + nodes : 0};
}

// The i-th pending token: causal, no mask.
SDE_HD inline void write_chain_row(const BuildRowsArgs& args, int64_t b, int32_t i, int32_t row,
                                   int32_t slot) {
  const RowBatchView& rows = args.rows;
  const int32_t position = args.computed_lens[b] + i;
  const int32_t token = args.pending_tokens[args.cu_pending[b] + i];
  write_row(rows, row, token, position, slot, b, 0, position + 1);
  uint64_t* mask = row_mask(rows, row);
  for (int32_t w = 0; w < rows.mask_words; ++w) mask[w] = 0;
}

// A tree node: everything up to the root is visible, the tree through the mask. `start` is the
// logical index of tree key 0.
SDE_HD inline void write_node_row(const BuildRowsArgs& args, int64_t b, const TokenTreeView& tree,
                                  int32_t node, int32_t start, int32_t row, int32_t slot) {
  const RowBatchView& rows = args.rows;
  write_row(rows, row, tree.tokens[node], start - 1 + tree.depths[node], slot, b, node, start);
  const uint64_t* from = tree.ancestor_mask + int64_t{node} * tree.mask_words;
  uint64_t* mask = row_mask(rows, row);
  for (int32_t w = 0; w < rows.mask_words; ++w) mask[w] = w < tree.mask_words ? from[w] : 0;
}

// All rows of a sequence from `row` on: the chain, then the nodes.
SDE_HD inline void write_sequence(const BuildRowsArgs& args, int64_t b, const RowCounts& counts,
                                  int32_t row) {
  SlotCursor slots(args.tables, b, args.computed_lens[b]);
  for (int32_t i = 0; i < counts.pending; ++i) write_chain_row(args, b, i, row++, slots.next());
  if (counts.nodes == 0) return;
  const TokenTreeView tree = args.tree.sequence(b);
  const int32_t start = args.computed_lens[b] + counts.pending;
  for (int32_t node = 1; node <= counts.nodes; ++node)
    write_node_row(args, b, tree, node, start, row++, slots.next());
}

}  // namespace build

SDE_HD inline void build_row_batch(const BuildRowsArgs& args) {
  const RowBatchView& rows = args.rows;
  const int32_t num_seqs = *args.num_seqs;
  int32_t row = 0;
  int32_t logits = 0;
  rows.cu_rows[0] = args.cu_logits[0] = 0;
  for (int32_t b = 0; b < num_seqs; ++b) {
    const build::RowCounts counts = build::row_counts(args, b);
    rows.tree_starts[b] = args.computed_lens[b] + counts.pending;
    build::write_sequence(args, b, counts, row);
    row += counts.pending + counts.nodes;
    for (int32_t i = counts.logits; i > 0; --i) args.logit_rows[logits++] = row - i;
    rows.cu_rows[b + 1] = row;
    args.cu_logits[b + 1] = logits;
  }
  *rows.num_rows = row;
  *args.num_logits = logits;
}

}  // namespace sdengine
