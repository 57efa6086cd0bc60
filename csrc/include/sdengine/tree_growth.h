// The first half of a layer of dynamic tree expansion: its candidates are merged into the best
// nodes so far (tree_expand.h says why nothing is lost by that).
#pragma once

#include <cstdint>

#include "sdengine/calibration.h"
#include "sdengine/extremes.h"
#include "sdengine/hd.h"
#include "sdengine/rank_keys.h"
#include "sdengine/token_tree.h"

namespace sdengine {

enum class ExpandRule : int32_t {
  kNode = 0,     // chance = v_u * prod over earlier siblings (1 - a); value = reach = chance * a
  kSlot = 1,     // chance and reach as kNode; value = chance, with a table: chance * expected
                 // acceptance of the draw
  kUniform = 2,  // value = 1, estimates as kNode
  kUniformSlot = 3,  // value = 1, estimates as kSlot
};

constexpr float kAboveAllValues = 3e38f;

// A proposal mass below this closes a slot: nothing is left to draw. A node's is never less.
constexpr float kMinRemainingMass = 1e-6f;

struct Candidate {
  float value;
  float reach;
  float estimate;
  int32_t parent;  // draft tree index before the merge
  int32_t rank;    // order among the siblings
  int32_t at;      // flat index into the candidate tensors
};

struct TreeExpandArgs {
  int32_t layer;
  ExpandRule rule;
  int32_t max_children;
  int32_t max_width;
  int32_t proposal_offset;  // row of the proposal store that candidate row 0 is
  int32_t num_candidates;   // K
  int32_t num_stop_tokens;
  int32_t batch_size;               // B
  const int32_t* candidate_tokens;  // [rows, K]
  const float* candidate_probs;     // [rows, K]
  const int32_t* cu_rows;           // [B + 1]
  const int32_t* frontier_nodes;    // [rows], null in layer 0: every row is a root
  DraftTreeView tree;
  const int32_t* tree_starts;   // [B], root position + 1
  const float* root_values;     // [B] or null: 1
  const int32_t* node_budgets;  // [B]
  const int32_t* total_budget;  // [1]
  const int32_t* depth_limits;  // [B]
  const int32_t* stop_tokens;   // [B, num_stop_tokens], -1 where unused
  const float* calibration;     // [B, 8, 32] or null
  const float* min_layer_gain;  // [1]
  const float* row_prices;      // [N], null: rows cost nothing
  int32_t num_prices;           // N
  const int32_t* cu_pending;    // [B + 1], with row_prices
  const int32_t* num_seqs;      // [1]
  BlockTablesView tables;
  RowBatchView rows;    // capacity 0: no next layer
  int32_t* node_slots;  // [N] or null: the draft slot of each new row's node
  uint64_t* scratch;    // the op's scratch tensor; what lies where is its backend's business
  // Arrays of the serial code, which the CPU backend finds room for in `scratch`.
  uint64_t* keys;         // [max(B T, T + max_width K)]
  uint64_t* buffer;       // [B T], with row_prices
  Candidate* candidates;  // [max_width K]
  int32_t* remap;         // [T + 1]
};

namespace expand {

// Ranks ties: nodes of a sequence by index, nodes of a batch by depth, sequence, index.
struct NodeOrder {
  uint32_t depth_stride;
  uint32_t offset;
  SDE_HD uint32_t operator()(int32_t depth, int32_t index) const {
    return static_cast<uint32_t>(depth) * depth_stride + offset + static_cast<uint32_t>(index);
  }
};

SDE_HD inline bool is_slot_rule(ExpandRule rule) {
  return rule == ExpandRule::kSlot || rule == ExpandRule::kUniformSlot;
}

SDE_HD inline bool is_uniform_rule(ExpandRule rule) {
  return rule == ExpandRule::kUniform || rule == ExpandRule::kUniformSlot;
}

// `values`: of each sequence's root, or null.
SDE_HD inline void reset_to_root(DraftTreeView tree, const float* values, int64_t b) {
  tree.tokens[0] = tree.parents[0] = tree.proposal_rows[0] = -1;
  tree.depths[0] = tree.ranks[0] = tree.draft_slots[0] = 0;
  tree.values[0] = tree.reach[0] = values == nullptr ? 1.0f : values[b];
  tree.estimates[0] = tree.probs[0] = 1.0f;
  *tree.num_nodes = 0;
  *tree.num_forwarded = 0;
}

// A static tree is what it is, whoever waits for it.
SDE_HD inline const float* root_values_of(const TreeExpandArgs& args) {
  return is_uniform_rule(args.rule) ? nullptr : args.root_values;
}

SDE_HD inline int32_t node_budget(const TreeExpandArgs& args, int64_t b) {
  const int32_t budget =
      min_of(min_of(args.node_budgets[b], *args.total_budget), args.tree.capacity);
  return budget > 0 ? budget : 0;
}

// The value below or at which a newcomer cannot enter; above every value when the budget is zero.
SDE_HD inline float entry_floor(DraftTreeView tree, int32_t budget) {
  const int32_t count = *tree.num_nodes;
  if (count < budget) return 0.0f;
  float floor = kAboveAllValues;
  for (int32_t i = 1; i <= count; ++i) floor = min_of(floor, tree.values[i]);
  return floor;
}

// The rates for children of a rank in a sequence's table; null without.
SDE_HD inline const float* rank_table(const float* calibration, int64_t b, int32_t rank) {
  if (calibration == nullptr) return nullptr;
  return calibration + b * kCalibrationCells + calibration_class(rank) * kCalibrationBins;
}

// Calibrated acceptance in [0, 1]; without a table the estimate itself.
SDE_HD inline float acceptance_of(float estimate, const float* table) {
  const float acceptance = table ? calibrated(estimate, table) : min_of(estimate, 1.0f);
  return acceptance > 0.0f ? acceptance : 0.0f;  // also NaN, from a damaged table
}

// Whether values ask what the draws of their slots can expect.
SDE_HD inline bool needs_expectations(const TreeExpandArgs& args) {
  return args.rule == ExpandRule::kSlot && args.calibration != nullptr;
}

// What a candidate adds to the acceptance that a draw from `remaining` can expect.
SDE_HD inline float expected_term(float prob, float remaining, const float* table) {
  const float share = min_of(prob / remaining, 1.0f);
  return share * acceptance_of(share, table);
}

// Acceptance that a draw from what is left at a slot can expect: the mean of a over the candidates
// that are not drawn yet. Which of them is drawn next plays no part, so that slots may be kept or
// not by it. Costs a table look-up a candidate: asked only for slots that could still be kept.
SDE_HD inline float expected_acceptance(const float* probs, int32_t begin, int32_t end,
                                        float remaining, const float* table) {
  float expected = 0.0f;
  for (int32_t i = end - 1; i >= begin; --i) expected += expected_term(probs[i], remaining, table);
  return min_of(expected, 1.0f);
}

// Notes in the first `limit` candidates' estimates what each of them is a share of: the proposal's
// mass without the candidates before it. By the slot rules all of it lies within the K candidates
// and is summed from the small end: 1 - (sum so far) would cancel.
SDE_HD inline void note_remaining(const TreeExpandArgs& args, const float* probs, int32_t limit,
                                  Candidate* out) {
  if (is_slot_rule(args.rule)) {
    float remaining = 0.0f;
    for (int32_t j = args.num_candidates - 1; j >= 0; --j) {
      remaining += probs[j];
      if (j < limit) out[j].estimate = remaining;
    }
    return;
  }
  float remaining = 1.0f;
  for (int32_t j = 0; j < limit; ++j) {
    out[j].estimate = remaining;
    remaining = max_of(remaining - probs[j], kMinRemainingMass);
  }
}

// What a candidate is as a child, whatever its parent is worth.
struct Offer {
  float estimate;    // its share of what the candidates before it leave
  float acceptance;  // below 0: neither it nor any after it can be a child
};

// Of the candidate at `at`, its row's j-th, beside which `remaining` of the proposal is left.
SDE_HD inline Offer offer_of(const TreeExpandArgs& args, int64_t b, int32_t at, int32_t j,
                             float remaining) {
  const float prob = args.candidate_probs[at];
  const bool is_open = !is_slot_rule(args.rule) || remaining > kMinRemainingMass;
  if (args.candidate_tokens[at] < 0 || !(prob > 0.0f) || !is_open) return {0.0f, -1.0f};
  const float estimate = min_of(prob / remaining, 1.0f);
  return {estimate, acceptance_of(estimate, rank_table(args.calibration, b, j))};
}

// Writes the children of `node` worth more than `floor`, best first; returns how many. A child's
// estimate is its acceptance given that no earlier sibling is accepted, by any rule: of two equal
// probabilities the first child's comes true far more often (0.31 of a greedy draft in 80%, the
// second's in 21%), and with one rate for both a batch gave second children the rows of first ones.
//   base: of the row's candidates
//   offer_at, expected_at: of the j-th, asked before its place in `out` is written
template <class OfferAt, class ExpectedAt>
SDE_HD inline int32_t value_children(const TreeExpandArgs& args, DraftTreeView tree, int32_t node,
                                     int32_t base, int32_t limit, float floor, OfferAt offer_at,
                                     ExpectedAt expected_at, Candidate* out) {
  const bool by_slot = is_slot_rule(args.rule);
  float chance = tree.reach[node];
  float bound = tree.values[node];
  for (int32_t j = 0; j < limit; ++j) {
    const Offer offer = offer_at(j);
    if (offer.acceptance < 0.0f) return j;
    const float reach = chance * offer.acceptance;
    float value = min_of(by_slot ? chance : reach, bound);
    if (needs_expectations(args) && value > floor) value = min_of(chance * expected_at(j), bound);
    chance = chance * (1.0f - offer.acceptance);
    out[j] = {value, by_slot ? reach : value, offer.estimate, node, j, base + j};
    if (is_uniform_rule(args.rule)) {
      out[j].value = value = 1.0f;
      out[j].reach = reach;
    }
    if (!(value > floor)) return j;
    bound = value;
  }
  return limit;
}

// The same from the proposal alone.
SDE_HD inline int32_t propose_children(const TreeExpandArgs& args, int64_t b, DraftTreeView tree,
                                       int32_t node, int32_t row, int32_t limit, float floor,
                                       Candidate* out) {
  const int32_t base = row * args.num_candidates;
  const float* probs = args.candidate_probs + base;
  note_remaining(args, probs, limit, out);
  auto offer_at = [&](int32_t j) { return offer_of(args, b, base + j, j, out[j].estimate); };
  auto expected_at = [&](int32_t j) {
    return expected_acceptance(probs, j, args.num_candidates, out[j].estimate,
                               rank_table(args.calibration, b, j));
  };
  return value_children(args, tree, node, base, limit, floor, offer_at, expected_at, out);
}

SDE_HD inline void move_node(DraftTreeView tree, int32_t from, int32_t to) {
  tree.tokens[to] = tree.tokens[from];
  tree.depths[to] = tree.depths[from];
  tree.ranks[to] = tree.ranks[from];
  tree.values[to] = tree.values[from];
  tree.reach[to] = tree.reach[from];
  tree.estimates[to] = tree.estimates[from];
  tree.probs[to] = tree.probs[from];
  tree.draft_slots[to] = tree.draft_slots[from];
  tree.proposal_rows[to] = tree.proposal_rows[from];
}

// Keeps the nodes whose key is at least `cut`; remap[old index] = new index, -1 when dropped.
SDE_HD inline void drop_below(DraftTreeView tree, uint64_t cut, NodeOrder order, int32_t* remap) {
  const int32_t count = *tree.num_nodes;
  int32_t kept = 0;
  remap[0] = 0;
  for (int32_t i = 1; i <= count; ++i) {
    if (rank_key(tree.values[i], order(tree.depths[i], i)) < cut) {
      remap[i] = -1;
      continue;
    }
    remap[i] = ++kept;
    const int32_t parent = remap[tree.parents[i]];
    if (kept != i) move_node(tree, i, kept);
    tree.parents[kept] = parent;
  }
  *tree.num_nodes = kept;
}

SDE_HD inline void write_node(const TreeExpandArgs& args, DraftTreeView tree, int32_t i,
                              const Candidate& candidate, int32_t parent) {
  tree.tokens[i] = args.candidate_tokens[candidate.at];
  tree.parents[i] = parent;
  tree.depths[i] = args.layer + 1;
  tree.ranks[i] = candidate.rank;
  tree.values[i] = candidate.value;
  tree.reach[i] = candidate.reach;
  tree.estimates[i] = candidate.estimate;
  tree.probs[i] = args.candidate_probs[candidate.at];
  tree.draft_slots[i] = -1;
  tree.proposal_rows[i] = -1;
}

SDE_HD inline void append_node(const TreeExpandArgs& args, DraftTreeView tree,
                               const Candidate& candidate, int32_t parent) {
  write_node(args, tree, ++*tree.num_nodes, candidate, parent);
}

// The key of the budget-th best among a sequence's nodes and its first `count` candidates.
SDE_HD inline uint64_t merge_cut(const TreeExpandArgs& args, DraftTreeView tree, int32_t count,
                                 int32_t budget) {
  const int32_t held = *tree.num_nodes;
  for (int32_t i = 0; i < held; ++i) args.keys[i] = rank_key(tree.values[i + 1], i + 1);
  for (int32_t c = 0; c < count; ++c) {
    args.keys[held + c] = rank_key(args.candidates[c].value, held + 1 + c);
  }
  return nth_largest(args.keys, held + count, budget);
}

// Collects a sequence's candidates of this layer and notes where each frontier node's proposal
// lies. As soon as nodes and candidates fill the budget, what cannot be among the best is no longer
// collected: 16 calibrated rows of 16 at a budget of 64 took 4.5 us without, 2.6 us with (Zen 4).
SDE_HD inline int32_t collect_candidates(const TreeExpandArgs& args, int64_t b, DraftTreeView tree,
                                         int32_t budget) {
  if (args.layer >= args.depth_limits[b]) return 0;
  float floor = entry_floor(tree, budget);
  bool is_floor_set = *tree.num_nodes >= budget;
  const int32_t limit = min_of(min_of(args.max_children, args.num_candidates), budget);
  const int32_t last = min_of(args.cu_rows[b + 1], args.cu_rows[b] + args.max_width);
  int32_t count = 0;
  for (int32_t row = args.cu_rows[b]; row < last; ++row) {
    const int32_t node = args.frontier_nodes ? args.frontier_nodes[row] : 0;
    tree.proposal_rows[node] = args.proposal_offset + row;
    count += propose_children(args, b, tree, node, row, limit, floor, args.candidates + count);
    if (!is_floor_set && row + 1 < last && *tree.num_nodes + count >= budget) {
      floor = key_value(merge_cut(args, tree, count, budget));
      is_floor_set = true;
    }
  }
  return count;
}

// Merges a sequence's candidates into its best `node_budget` nodes.
SDE_HD inline void add_layer(const TreeExpandArgs& args, int64_t b) {
  DraftTreeView tree = args.tree.sequence(b);
  if (args.layer == 0) reset_to_root(tree, root_values_of(args), b);
  const int32_t budget = node_budget(args, b);
  const int32_t count = collect_candidates(args, b, tree, budget);
  const int32_t held = *tree.num_nodes;
  if (count == 0) return;
  if (held + count <= budget) {
    for (int32_t c = 0; c < count; ++c) {
      append_node(args, tree, args.candidates[c], args.candidates[c].parent);
    }
    return;
  }
  const uint64_t cut = merge_cut(args, tree, count, budget);
  drop_below(tree, cut, NodeOrder{0, 0}, args.remap);
  for (int32_t c = 0; c < count; ++c) {
    const Candidate& candidate = args.candidates[c];
    if (rank_key(candidate.value, held + 1 + c) >= cut) {
      append_node(args, tree, candidate, args.remap[candidate.parent]);
    }
  }
}

SDE_HD inline NodeOrder pooled_order(const TreeExpandArgs& args, int64_t b) {
  const uint32_t stride = args.tree.capacity + 1;
  return {static_cast<uint32_t>(args.batch_size) * stride, static_cast<uint32_t>(b) * stride};
}

// Trims the batch to `total_budget` nodes; returns the value a newcomer must beat, 0 when there is
// room.
SDE_HD inline float pool(const TreeExpandArgs& args) {
  const int32_t num_seqs = *args.num_seqs;
  int32_t total = 0;
  for (int32_t b = 0; b < num_seqs; ++b) total += args.tree.num_nodes[b];
  const int32_t budget = *args.total_budget;
  if (total < budget) return 0.0f;
  if (budget > 0 && total > budget) {
    int32_t count = 0;
    for (int32_t b = 0; b < num_seqs; ++b) {
      const DraftTreeView tree = args.tree.sequence(b);
      const NodeOrder order = pooled_order(args, b);
      for (int32_t i = 1; i <= *tree.num_nodes; ++i) {
        args.keys[count++] = rank_key(tree.values[i], order(tree.depths[i], i));
      }
    }
    const uint64_t cut = nth_largest(args.keys, count, budget);
    for (int32_t b = 0; b < num_seqs; ++b) {
      drop_below(args.tree.sequence(b), cut, pooled_order(args, b), args.remap);
    }
  }
  float floor = kAboveAllValues;
  for (int32_t b = 0; b < num_seqs; ++b) {
    const DraftTreeView tree = args.tree.sequence(b);
    floor = min_of(floor, entry_floor(tree, *tree.num_nodes));
  }
  return floor;
}

}  // namespace expand

}  // namespace sdengine
