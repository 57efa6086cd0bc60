// Views of the tree and row tensors (structs of arrays over the batch); see kernels/token_tree.py
// and row_batch.py.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

// Values of wants_logits, what a sequence needs logits of: nothing (its prompt is unfinished), the
// root and every node of its tree, the root alone.
constexpr int32_t kNoLogits = 0, kRootAndNodes = 1, kRootOnly = 2;

// A growing tree per sequence, nodes in creation order (depth, parent, draw); node 0 is the root.
struct DraftTreeView {
  int32_t* tokens;       // [B, T + 1]
  int32_t* parents;      // [B, T + 1], -1 for the root
  int32_t* depths;       // [B, T + 1]
  int32_t* ranks;        // [B, T + 1], order among siblings
  float* values;         // [B, T + 1], sort key
  float* reach;          // [B, T + 1], estimated probability that the path to the node is accepted
  float* estimates;      // [B, T + 1], raw acceptance estimate
  float* probs;          // [B, T + 1], draft probability of the token
  int32_t* draft_slots;  // [B, T + 1], index of the node's draft KV, 0 for the root, -1 when not
                         // forwarded
  int32_t* proposal_rows;  // [B, T + 1], row of the proposal store its children are from, or -1
  int32_t* num_nodes;      // [B], root excluded
  int32_t* num_forwarded;  // [B], draft slots handed out, root excluded
  int32_t capacity;        // T

  SDE_HD DraftTreeView sequence(int64_t b) const {
    const int64_t at = b * (capacity + 1);
    return {tokens + at,   parents + at,      depths + at, ranks + at,       values + at,
            reach + at,    estimates + at,    probs + at,  draft_slots + at, proposal_rows + at,
            num_nodes + b, num_forwarded + b, capacity};
  }
};

// The selected tree in depth-first preorder, first child right after its parent; node 0 is the
// root.
struct TokenTreeView {
  int32_t* tokens;          // [B, T + 1]
  int32_t* parents;         // [B, T + 1], -1 for the root
  int32_t* depths;          // [B, T + 1]
  int32_t* first_child;     // [B, T + 1], -1 without
  int32_t* next_sibling;    // [B, T + 1], -1 without; draw order
  int32_t* draft_slots;     // [B, T + 1]
  int32_t* proposal_rows;   // [B, T + 1]
  int32_t* creation_ids;    // [B, T + 1], the node's index in the draft tree
  float* estimates;         // [B, T + 1]
  float* probs;             // [B, T + 1]
  float* reach;             // [B, T + 1]
  uint64_t* ancestor_mask;  // [B, T + 1, W], bit i - 1: node i is the node itself or an ancestor
                            // below the root
  int32_t* num_nodes;       // [B], root excluded
  int32_t capacity;         // T
  int32_t mask_words;       // W

  SDE_HD TokenTreeView sequence(int64_t b) const {
    const int64_t at = b * (capacity + 1);
    return {tokens + at,        parents + at,      depths + at,
            first_child + at,   next_sibling + at, draft_slots + at,
            proposal_rows + at, creation_ids + at, estimates + at,
            probs + at,         reach + at,        ancestor_mask + at * mask_words,
            num_nodes + b,      capacity,          mask_words};
  }
};

// What a forward pass runs over.
struct RowBatchView {
  int32_t* tokens;          // [N]
  int32_t* positions;       // [N]
  int32_t* slots;           // [N], physical KV slot
  int32_t* row_seq;         // [N]
  int32_t* row_node;        // [N], tree node of the row, 0 for chain rows
  int32_t* visible_lens;    // [N]
  uint64_t* ancestor_mask;  // [N, W]
  int32_t* cu_rows;         // [B + 1]
  int32_t* tree_starts;     // [B]
  int32_t* num_rows;        // [1]
  int32_t capacity;         // N
  int32_t mask_words;       // W
};

// Where a sequence's tokens live: logical index -> physical slot.
struct BlockTablesView {
  const int32_t* blocks;  // [B, P_max]
  int32_t max_blocks;     // P_max
  int32_t block_size;

  SDE_HD int32_t slot(int64_t b, int32_t logical) const {
    return blocks[b * max_blocks + logical / block_size] * block_size + logical % block_size;
  }
};

}  // namespace sdengine
