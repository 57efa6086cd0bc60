// One layer of dynamic tree expansion, for the whole batch.
//
// The candidates of a draft layer are merged into the best `budget` nodes so far, by (value
// descending, creation order ascending). Values never rise from parent to child or to a later
// sibling, so what is dropped could never come back, the kept set is closed under parents and
// earlier siblings, and after the last layer it is the tree that a best-first heap would have grown
// one node at a time. A node is worth a draft forward only if a child could still enter and be
// selected: a child is worth at most its parent's reach and value, and it loses ties against every
// node kept before it.
//
// By the slot rules (children are drawn, then tested by rejection) whether a node is kept must not
// depend on which token was drawn for it, or the output no longer has the target's law. What a node
// drew may decide about its own children only, which are worth no more than it is: so each node has
// to be worth a share of its layer by itself (a sum over the layer lets a lucky draw bring in other
// nodes' children, which may be worth more than it), and of too many the widest are chosen by what
// their children can be worth, which the luck of a draw does not raise above the node's own value.
#pragma once

#include <cstdint>

#include "sdengine/extremes.h"
#include "sdengine/hd.h"
#include "sdengine/rank_keys.h"
#include "sdengine/token_search.h"
#include "sdengine/token_tree.h"
#include "sdengine/tree_growth.h"

namespace sdengine {

namespace expand {

// How many nodes of the sequence the next layer can forward: width, KV slots, mask bits, rows.
SDE_HD inline int32_t frontier_room(const TreeExpandArgs& args, int64_t b, int32_t rows_so_far) {
  const int32_t forwarded = args.tree.num_forwarded[b];
  int32_t room = min_of(args.max_width, args.rows.capacity - rows_so_far);
  room = min_of(room, args.rows.mask_words * 64 - forwarded);
  return min_of(room,
                args.tables.max_blocks * args.tables.block_size - args.tree_starts[b] - forwarded);
}

// What row `row` of the step costs.
SDE_HD inline float price_of(const TreeExpandArgs& args, int32_t row) {
  return row < args.num_prices ? args.row_prices[row] : kAboveAllValues;
}

SDE_HD inline int32_t first_tree_row(const TreeExpandArgs& args) {
  return args.cu_pending[*args.num_seqs];
}

SDE_HD inline bool has_prices(const TreeExpandArgs& args) {
  return args.row_prices != nullptr && !is_uniform_rule(args.rule);
}

// What a newcomer has to be worth beside `kept` selected nodes, the last of which is worth `last`:
// it takes that one's place, or one more row.
SDE_HD inline float newcomer_cost(const TreeExpandArgs& args, int32_t kept, float last) {
  const float price = price_of(args, first_tree_row(args) + kept);
  return kept > 0 && last < price ? last : price;
}

// Whether a node worth `value` pays for the row that it gets as one of the batch's best, `rank` of
// which go before it.
SDE_HD inline bool pays_at(const TreeExpandArgs& args, float value, int32_t rank) {
  return value >= price_of(args, first_tree_row(args) + rank);
}

// What a newcomer has to be worth beside the nodes that the batch would select so far: sequences
// share the rows, and where those that are left cost more, a child takes another node's place.
// Priced by the nodes of its own sequence alone, layers looked worth their time that only changed
// one good node for another (two sequences: 3.5 layers for the tokens of 2.5).
SDE_HD inline float selection_floor(const TreeExpandArgs& args) {
  if (!has_prices(args)) return 0.0f;
  int32_t count = 0;
  float least = kAboveAllValues;
  for (int32_t b = 0; b < *args.num_seqs; ++b) {
    const DraftTreeView tree = args.tree.sequence(b);
    for (int32_t i = 1; i <= *tree.num_nodes; ++i) {
      least = min_of(least, tree.values[i]);
      args.keys[count++] = rank_key(tree.values[i], 0);
    }
  }
  bool is_whole = true;  // usual: every node would pay for every row
  for (int32_t i = 0; i < count; ++i) is_whole = is_whole && pays_at(args, least, i);
  if (is_whole) return newcomer_cost(args, count, least);
  sort_descending(args.keys, args.buffer, count);
  int32_t kept = 0;
  while (kept < count && pays_at(args, key_value(args.keys[kept]), kept)) ++kept;
  return newcomer_cost(args, kept, kept > 0 ? key_value(args.keys[kept - 1]) : kAboveAllValues);
}

// The most that a child can be worth.
SDE_HD inline float promise_of(DraftTreeView tree, int32_t node) {
  return min_of(tree.reach[node], tree.values[node]);
}

// Whether a child of the node could still enter the kept set.
SDE_HD inline bool can_have_children(const TreeExpandArgs& args, int64_t b, DraftTreeView tree,
                                     int32_t node, float floor) {
  const bool can_enter = is_uniform_rule(args.rule) ? floor < 1.0f : promise_of(tree, node) > floor;
  return can_enter && !is_stop_token(args, b, tree.tokens[node]);
}

// Whether the sequence grows a tree in this step.
SDE_HD inline bool is_growing(const TreeExpandArgs& args, int64_t b) {
  return args.depth_limits[b] > 0;
}

SDE_HD inline int32_t count_growing(const TreeExpandArgs& args) {
  int32_t count = 0;
  for (int32_t b = 0; b < *args.num_seqs; ++b) count += is_growing(args, b) ? 1 : 0;
  return count;
}

// What a node has to reach for the sake of its layer, which so many sequences share.
SDE_HD inline float layer_share(const TreeExpandArgs& args, int32_t num_growing) {
  if (!is_slot_rule(args.rule) || num_growing == 0) return 0.0f;
  return *args.min_layer_gain / static_cast<float>(num_growing);
}

// Whether the layer runs; by the slot rules the nodes' shares have decided.
SDE_HD inline bool is_worth_running(const TreeExpandArgs& args, float gain) {
  return is_slot_rule(args.rule) || !(gain < *args.min_layer_gain);
}

// Writes the nodes to forward next at rows.row_node[first...] in creation order; returns how many.
//   cost: what a child has to be worth to be selected, and its parent for the sake of its layer.
SDE_HD inline int32_t choose_frontier(const TreeExpandArgs& args, int64_t b, float pool_floor,
                                      float cost, int32_t first, float* gain) {
  const DraftTreeView tree = args.tree.sequence(b);
  const int32_t depth = args.layer + 1;
  const int32_t room = frontier_room(args, b, first);
  if (room <= 0 || depth >= args.depth_limits[b]) return 0;
  const float own_floor = entry_floor(tree, node_budget(args, b));
  const float floor = max_of(own_floor, pool_floor);
  int32_t begin = *tree.num_nodes + 1;
  while (tree.depths[begin - 1] == depth) --begin;
  int32_t eligible = 0;
  for (int32_t i = begin; i <= *tree.num_nodes; ++i) {
    if (can_have_children(args, b, tree, i, floor))
      args.keys[eligible++] = rank_key(promise_of(tree, i), i);
  }
  const uint64_t cut = eligible > room ? nth_largest(args.keys, eligible, room) : 0;
  int32_t count = 0;
  for (int32_t i = begin; i <= *tree.num_nodes; ++i) {
    const float promise = promise_of(tree, i);
    if (rank_key(promise, i) < cut || promise < cost) continue;
    if (!can_have_children(args, b, tree, i, floor)) continue;
    args.rows.row_node[first + count++] = i;
    *gain += promise - max_of(cost, floor);
  }
  return count;
}

SDE_HD inline void write_ancestor_bits(const TreeExpandArgs& args, DraftTreeView tree, int32_t node,
                                       int32_t row) {
  uint64_t* mask = args.rows.ancestor_mask + static_cast<int64_t>(row) * args.rows.mask_words;
  for (int32_t w = 0; w < args.rows.mask_words; ++w) mask[w] = 0;
  for (int32_t at = node; at != 0; at = tree.parents[at]) {
    const int32_t bit = tree.draft_slots[at] - 1;
    mask[bit >> 6] |= uint64_t{1} << (bit & 63);
  }
}

// Fills a row with a node that gets a draft slot.
SDE_HD inline void emit_row(const TreeExpandArgs& args, int64_t b, DraftTreeView tree, int32_t node,
                            int32_t row, int32_t slot) {
  const RowBatchView& rows = args.rows;
  const int32_t start = args.tree_starts[b];
  tree.draft_slots[node] = slot;
  if (args.node_slots) args.node_slots[row] = slot;
  rows.tokens[row] = tree.tokens[node];
  rows.positions[row] = start - 1 + tree.depths[node];
  rows.slots[row] = args.tables.slot(b, start - 1 + slot);
  rows.row_seq[row] = static_cast<int32_t>(b);
  rows.visible_lens[row] = start;
  write_ancestor_bits(args, tree, node, row);
}

// Fills the rows of a sequence whose nodes stand in rows.row_node, and hands out their draft slots.
SDE_HD inline void emit_rows(const TreeExpandArgs& args, int64_t b) {
  const DraftTreeView tree = args.tree.sequence(b);
  const RowBatchView& rows = args.rows;
  for (int32_t row = rows.cu_rows[b]; row < rows.cu_rows[b + 1]; ++row)
    emit_row(args, b, tree, rows.row_node[row], row, ++*tree.num_forwarded);
}

// The next draft layer's rows, or none when together they promise less than `min_layer_gain`.
SDE_HD inline void next_rows(const TreeExpandArgs& args, float pool_floor) {
  const RowBatchView& rows = args.rows;
  const int32_t num_seqs = *args.num_seqs;
  const float cost = max_of(selection_floor(args), layer_share(args, count_growing(args)));
  float gain = 0.0f;
  rows.cu_rows[0] = 0;
  for (int32_t b = 0; b < num_seqs; ++b) {
    const int32_t first = rows.cu_rows[b];
    float own_gain = 0.0f;
    rows.cu_rows[b + 1] = first + choose_frontier(args, b, pool_floor, cost, first, &own_gain);
    gain += own_gain;
    rows.tree_starts[b] = args.tree_starts[b];
  }
  if (!is_worth_running(args, gain)) {
    for (int32_t b = 0; b < num_seqs; ++b) rows.cu_rows[b + 1] = 0;
  }
  for (int32_t b = 0; b < num_seqs; ++b) emit_rows(args, b);
  *rows.num_rows = rows.cu_rows[num_seqs];
}

}  // namespace expand

// Runs one layer. Everything that reads the old rows is done before the new ones are written, so
// both may be the same.
SDE_HD inline void expand_layer(const TreeExpandArgs& args) {
  for (int32_t b = 0; b < *args.num_seqs; ++b) expand::add_layer(args, b);
  const float pool_floor = expand::pool(args);
  if (args.rows.capacity > 0) expand::next_rows(args, pool_floor);
}

}  // namespace sdengine
