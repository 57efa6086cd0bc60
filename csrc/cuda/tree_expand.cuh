// What the launches of tree_expand leave for one another, and what they share.
#pragma once

#include "cuda/select_key.cuh"
#include "sdengine/tree_expand.h"

namespace sdengine {

// Most children of a node: a proposal may hold more candidates than are taken of it.
SDE_HD inline int32_t most_children(const TreeExpandArgs& args) {
  return min_of(args.max_children, args.num_candidates);
}

// What a block of `grow` works on, which is as large as tree, frontier and proposals are: 270 KiB
// for 1024 nodes and 256 rows of 32 candidates.
struct GrowArrays {
  SDE_HD GrowArrays(SharedLayout* layout, const TreeExpandArgs& args) {
    const int64_t slots = int64_t{args.max_width} * most_children(args);
    keys = layout->take<uint64_t>(args.tree.capacity + slots);
    candidates = layout->take<Candidate>(slots);
    counts = layout->take<int32_t>(args.max_width);
    remap = layout->take<int32_t>(args.tree.capacity + 1);
  }
  uint64_t* keys;         // [T + W C], C most_children
  Candidate* candidates;  // [W, C]
  int32_t* counts;        // [W], candidates of a row
  int32_t* remap;         // [T + 1]
};

// Words of one sequence's GrowArrays.
SDE_HD inline int64_t grow_words(const TreeExpandArgs& args) {
  SharedLayout layout(nullptr);
  const GrowArrays arrays(&layout, args);
  return (layout.bytes() + 7) / 8;
}

// The op's scratch tensor between its launches, W = max_width: B (T + T/2 + W + 2) words, rounded
// up, then, where shared memory has no room for them, the GrowArrays of every sequence.
struct ExpandScratch {
  SDE_HD explicit ExpandScratch(const TreeExpandArgs& args) {
    const int64_t batch = args.batch_size;
    SharedLayout layout(reinterpret_cast<unsigned char*>(args.scratch));
    keys = layout.take<uint64_t>(batch * args.tree.capacity);
    num_nodes = layout.take<int32_t>(batch);
    first_failures = layout.take<int32_t>(batch);
    values = layout.take<float>(batch * args.tree.capacity);
    floors = layout.take<float>(batch);
    num_open = layout.take<int32_t>(batch);
    open = layout.take<int32_t>(batch * args.max_width);
    promises = layout.take<float>(batch * args.max_width);
    arrays = layout.take<uint64_t>(0);
  }
  uint64_t* keys;           // [B, T], order of the batch, of the nodes that a sequence holds
  int32_t* num_nodes;       // [B], how many those are
  int32_t* first_failures;  // [B], least rank in the batch of its nodes that do not pay for a row
  float* values;            // [B T], of the batch's nodes by rank
  float* floors;            // [B], what its newcomers must be worth more than
  int32_t* num_open;        // [B], nodes that can have children, at most W of them
  int32_t* open;            // [B, W], in creation order
  float* promises;          // [B, W], the most that a child of them can be worth
  uint64_t* arrays;         // [B, grow_words]
};

// The value below or at which a newcomer cannot enter (expand::entry_floor, by a block).
__device__ inline float entry_floor(const Block& block, const DraftTreeView& tree, int32_t count,
                                    int32_t budget) {
  if (count < budget) return 0.0f;
  float floor = kAboveAllValues;
  for (int32_t i = 1 + block.rank(); i <= count; i += block.size())
    floor = min_of(floor, tree.values[i]);
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
