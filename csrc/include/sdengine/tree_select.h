// Final choice of nodes over the batch, renumbered so that the likeliest path is contiguous.
//
// Nodes are taken in the order (value descending, depth, sequence, creation order ascending) until
// one is not worth its row. Values never rise from parent to child or later sibling, so a prefix of
// that order is closed under parents and earlier siblings; and a value does not depend on the
// node's own token (rule "slot"), so the choice stays valid for rejection sampling.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"
#include "sdengine/rank_keys.h"
#include "sdengine/token_tree.h"

namespace sdengine {

struct TreeSelectArgs {
  DraftTreeView draft;
  const float* thresholds;    // [N], least value of the node that becomes row i of the target pass
  int32_t max_rows;           // N
  const int32_t* cu_pending;  // [B + 1]
  const int32_t* num_seqs;    // [1]
  const int32_t* total_budget;  // [1], most nodes of the batch; null: as many as there are rows
  int32_t batch_size;           // B
  TokenTreeView tree;
  uint64_t* scratch;  // the op's scratch tensor; what lies where is its backend's business
  // Arrays of the serial code, which the CPU backend finds room for in `scratch`.
  uint64_t* keys;    // [B T]
  uint64_t* buffer;  // [B T]
  int32_t* sizes;    // [T + 1], nodes of the subtree; 0 when dropped
  int32_t* places;   // [T + 1], preorder index
  int32_t* next;     // [T + 1], preorder index of the next child
};

namespace select {

SDE_HD inline uint64_t node_key(const TreeSelectArgs& args, DraftTreeView draft, int64_t b,
                                int32_t i) {
  const uint32_t stride = args.draft.capacity + 1;
  const uint32_t order =
      static_cast<uint32_t>(draft.depths[i]) * args.batch_size + static_cast<uint32_t>(b);
  return rank_key(draft.values[i], order * stride + i);
}

// How many nodes may be taken.
SDE_HD inline int32_t room_for_nodes(const TreeSelectArgs& args, int32_t base) {
  const int32_t rows = args.max_rows - base;
  if (args.total_budget == nullptr || *args.total_budget >= rows) return rows;
  return *args.total_budget;
}

// Whether every node passes the thresholds in any order, so that nothing has to be sorted.
SDE_HD inline bool keeps_all(const TreeSelectArgs& args, int32_t base, int32_t total) {
  if (total > room_for_nodes(args, base)) return false;
  float highest = 0.0f;
  for (int32_t i = base; i < base + total; ++i) {
    if (args.thresholds[i] != args.thresholds[i]) return false;  // a NaN lets nothing pass
    if (args.thresholds[i] > highest) highest = args.thresholds[i];
  }
  for (int32_t b = 0; b < *args.num_seqs; ++b) {
    const DraftTreeView draft = args.draft.sequence(b);
    for (int32_t i = 1; i <= *draft.num_nodes; ++i) {
      if (!(draft.values[i] >= highest)) return false;
    }
  }
  return true;
}

// The key of the last node kept; 0 keeps all, the largest key keeps none.
SDE_HD inline uint64_t cut_key(const TreeSelectArgs& args) {
  const int32_t num_seqs = *args.num_seqs;
  const int32_t base = args.cu_pending[num_seqs];
  int32_t total = 0;
  for (int32_t b = 0; b < num_seqs; ++b) total += args.draft.num_nodes[b];
  if (keeps_all(args, base, total)) return 0;
  int32_t count = 0;
  for (int32_t b = 0; b < num_seqs; ++b) {
    const DraftTreeView draft = args.draft.sequence(b);
    for (int32_t i = 1; i <= *draft.num_nodes; ++i)
      args.keys[count++] = node_key(args, draft, b, i);
  }
  sort_descending(args.keys, args.buffer, count);
  const int32_t room = room_for_nodes(args, base);
  int32_t kept = 0;
  while (kept < count && kept < room &&
         key_value(args.keys[kept]) >= args.thresholds[base + kept]) {
    ++kept;
  }
  return kept > 0 ? args.keys[kept - 1] : ~uint64_t{0};
}

SDE_HD inline void write_root(TokenTreeView tree, DraftTreeView draft, int32_t num_nodes) {
  tree.tokens[0] = tree.parents[0] = tree.next_sibling[0] = -1;
  tree.depths[0] = tree.draft_slots[0] = tree.creation_ids[0] = 0;
  tree.first_child[0] = num_nodes > 0 ? 1 : -1;
  tree.proposal_rows[0] = draft.proposal_rows[0];
  tree.estimates[0] = tree.probs[0] = 1.0f;
  tree.reach[0] = draft.reach[0];
  for (int32_t w = 0; w < tree.mask_words; ++w) tree.ancestor_mask[w] = 0;
  *tree.num_nodes = num_nodes;
}

// Subtree sizes of the kept nodes; sizes[0] - 1 of them are kept.
SDE_HD inline void count_subtrees(const TreeSelectArgs& args, DraftTreeView draft, int64_t b,
                                  uint64_t cut) {
  args.sizes[0] = 1;
  for (int32_t i = 1; i <= *draft.num_nodes; ++i)
    args.sizes[i] = node_key(args, draft, b, i) >= cut ? 1 : 0;
  for (int32_t i = *draft.num_nodes; i > 0; --i) args.sizes[draft.parents[i]] += args.sizes[i];
}

SDE_HD inline void write_mask(TokenTreeView tree, int32_t node, int32_t parent) {
  const int64_t words = tree.mask_words;
  const uint64_t* from = tree.ancestor_mask + parent * words;
  uint64_t* to = tree.ancestor_mask + node * words;
  for (int32_t w = 0; w < words; ++w) to[w] = from[w];
  to[(node - 1) >> 6] |= uint64_t{1} << ((node - 1) & 63);
}

// Copies node i of the draft tree to its preorder place; `after` is the place after its subtree,
// `end` the one after its parent's.
SDE_HD inline void place_node(DraftTreeView draft, int32_t i, TokenTreeView tree, int32_t node,
                              int32_t parent, int32_t after, int32_t end) {
  tree.tokens[node] = draft.tokens[i];
  tree.parents[node] = parent;
  tree.depths[node] = draft.depths[i];
  tree.first_child[node] = after > node + 1 ? node + 1 : -1;
  tree.next_sibling[node] = after < end ? after : -1;
  tree.draft_slots[node] = draft.draft_slots[i];
  tree.proposal_rows[node] = draft.proposal_rows[i];
  tree.creation_ids[node] = i;
  tree.estimates[node] = draft.estimates[i];
  tree.probs[node] = draft.probs[i];
  tree.reach[node] = draft.reach[i];
}

// Renumbers the kept nodes; siblings keep their order, so a first child follows its parent.
SDE_HD inline void renumber(const TreeSelectArgs& args, int64_t b, uint64_t cut) {
  const DraftTreeView draft = args.draft.sequence(b);
  const TokenTreeView tree = args.tree.sequence(b);
  count_subtrees(args, draft, b, cut);
  write_root(tree, draft, args.sizes[0] - 1);
  args.places[0] = 0;
  args.next[0] = 1;
  for (int32_t i = 1; i <= *draft.num_nodes; ++i) {
    if (args.sizes[i] == 0) continue;
    const int32_t draft_parent = draft.parents[i];
    const int32_t parent = args.places[draft_parent];
    const int32_t node = args.next[draft_parent];
    const int32_t after = node + args.sizes[i];
    args.next[draft_parent] = after;
    args.places[i] = node;
    args.next[i] = node + 1;
    place_node(draft, i, tree, node, parent, after, parent + args.sizes[draft_parent]);
    write_mask(tree, node, parent);
  }
}

}  // namespace select

SDE_HD inline void select_trees(const TreeSelectArgs& args) {
  const uint64_t cut = select::cut_key(args);
  for (int32_t b = 0; b < *args.num_seqs; ++b) select::renumber(args, b, cut);
}

}  // namespace sdengine
