// What the launches of tree_expand leave for one another, and what they share.
#pragma once

#include "cuda/select_key.cuh"
#include "sdengine/tree_expand.h"

namespace sdengine {

// The op's scratch tensor between its launches: B (T + W + 1) words, W = max_width.
struct ExpandScratch {
  uint64_t* keys;       // [B, T], order of the batch, of the nodes that a sequence holds
  int32_t* num_nodes;   // [B], how many those are
  int32_t* num_chosen;  // [B], nodes to forward next
  float* gains;         // [B], what forwarding them promises
  int32_t* chosen;      // [B, W], in creation order
};

SDE_HD inline ExpandScratch expand_scratch(const TreeExpandArgs& args) {
  const int64_t batch = args.batch_size;
  int32_t* ints = reinterpret_cast<int32_t*>(args.keys + batch * args.tree.capacity);
  float* gains = reinterpret_cast<float*>(ints + 2 * batch);
  return {args.keys, ints, ints + batch, gains, ints + 3 * batch};
}

// The value below or at which a newcomer cannot enter (expand::entry_floor, by a block).
__device__ inline float entry_floor(const Block& block, const DraftTreeView& tree, int32_t count,
                                    int32_t budget) {
  if (count < budget) return 0.0f;
  float floor = 2.0f;
  for (int32_t i = 1 + block.rank(); i <= count; i += block.size())
    floor = expand::min_of(floor, tree.values[i]);
  return block.least_positive(floor);
}

// A node on its way to another place.
struct HeldNode {
  int32_t token, parent, depth, rank, draft_slot, proposal_row;
  float value, reach, estimate, prob;
};

__device__ inline HeldNode read_node(const DraftTreeView& tree, int32_t i) {
  return {tree.tokens[i],      tree.parents[i],       tree.depths[i], tree.ranks[i],
          tree.draft_slots[i], tree.proposal_rows[i], tree.values[i], tree.reach[i],
          tree.estimates[i],   tree.probs[i]};
}

__device__ inline void write_node(const DraftTreeView& tree, int32_t i, const HeldNode& node) {
  tree.tokens[i] = node.token;
  tree.parents[i] = node.parent;
  tree.depths[i] = node.depth;
  tree.ranks[i] = node.rank;
  tree.draft_slots[i] = node.draft_slot;
  tree.proposal_rows[i] = node.proposal_row;
  tree.values[i] = node.value;
  tree.reach[i] = node.reach;
  tree.estimates[i] = node.estimate;
  tree.probs[i] = node.prob;
}

// Keeps the nodes whose key is at least `cut`, in place (expand::drop_below, by a block); returns
// how many. Nodes only move down, so a group of nodes may be written as soon as it was read whole.
__device__ inline int32_t drop_below(const Block& block, const DraftTreeView& tree, int32_t count,
                                     uint64_t cut, expand::NodeOrder order, int32_t* remap) {
  int32_t kept = 0;
  if (block.is_leader()) remap[0] = 0;
  for (int32_t first = 1; first <= count; first += block.size()) {
    const int32_t i = first + block.rank();
    const bool is_live = i <= count;
    HeldNode node{};
    if (is_live) node = read_node(tree, i);
    const bool is_kept = is_live && rank_key(node.value, order(node.depth, i)) >= cut;
    const RunningSum sum = block.count_flags(is_kept);
    const int32_t to = kept + sum.before + 1;
    if (is_live) remap[i] = is_kept ? to : -1;
    block.sync();
    if (is_kept) {
      node.parent = remap[node.parent];
      write_node(tree, to, node);
    }
    kept += sum.total;
  }
  block.sync();
  return kept;
}

}  // namespace sdengine
