// The walk of a verifier through one sequence's token tree, from the root to the last accepted
// node.
#pragma once

#include <cstdint>

#include "sdengine/calibration.h"
#include "sdengine/hd.h"
#include "sdengine/noise.h"
#include "sdengine/residual.h"
#include "sdengine/row_plan.h"
#include "sdengine/token_tree.h"

namespace sdengine {

// What a walk writes for one sequence.
struct WalkView {
  int32_t* path;          // [D], accepted nodes from the top
  int32_t* out_tokens;    // [D + 1], their tokens, then one more token
  int32_t max_depth;      // D
  int32_t* tried;         // [8, 32], children tested, by class of their rank and bin of their raw
                          // estimate; added to
  int32_t* accepted;      // [8, 32], those of them that were accepted; added to
  bool is_writer = true;  // false: walks along with the thread that writes
};

// The store of draft proposals: candidates and their q in draw order, -1 past the support.
struct ProposalView {
  const int32_t* tokens;  // [M, K]
  const float* probs;     // [M, K]
  int32_t capacity;       // K
};

struct TreeVerifyArgs {
  TokenTreeView tree;
  const int32_t* logit_starts;   // [B], logits row of the root
  const int32_t* wants_logits;   // [B]
  const int32_t* num_seqs;       // [1]
  const int32_t* target_tokens;  // [N], or nullptr: drawn here, for visited nodes only
  float* logits;  // [N, V]; a row is changed while its last token is drawn, and restored
  int64_t vocab_size;
  const int32_t* tree_starts;  // [B], root position + 1
  SamplingTablesView tables;
  const int64_t* seeds;    // [B]
  ProposalView proposals;  // rejection only
  bool is_rejection;
  int32_t* num_accepted;  // [B]
  WalkView walk;          // rows of all sequences: [B, D], [B, D + 1], [B, 8, 32] twice
  uint64_t* scratch;      // on a GPU, with logits: B kTeamWords words
};

// Working memory of the blocks that walk one tree on a GPU (csrc/cuda/team.cuh): what each of up to
// 16 shows the others, twice, and a counter.
constexpr int32_t kMaxTeam = 16;
constexpr int32_t kTeamSlotWords = 256;
constexpr int32_t kTeamWords = 2 * kMaxTeam * kTeamSlotWords + 1;

// The walk of sequence b among those of all sequences.
SDE_HD inline WalkView walk_of(const WalkView& all, int64_t b) {
  return {
      all.path + b * all.max_depth,      all.out_tokens + b * (all.max_depth + 1), all.max_depth,
      all.tried + b * kCalibrationCells, all.accepted + b * kCalibrationCells,     all.is_writer};
}

SDE_HD inline void count_child(const TokenTreeView& tree, int32_t child, int32_t rank,
                               bool is_accepted, const WalkView& walk) {
  if (!walk.is_writer) return;
  const int cell =
      calibration_class(rank) * kCalibrationBins + calibration_bin(tree.estimates[child]);
  walk.tried[cell] += 1;
  walk.accepted[cell] += is_accepted ? 1 : 0;
}

// Child of `node` that carries `token`, or -1; counts the children up to it as tried, because
// estimates are of a child when no earlier one is accepted.
SDE_HD inline int32_t matching_child(const TokenTreeView& tree, int32_t node, int32_t token,
                                     const WalkView& walk) {
  int32_t rank = 0;
  for (int32_t child = tree.first_child[node]; child >= 0; child = tree.next_sibling[child]) {
    const bool is_match = tree.tokens[child] == token;
    count_child(tree, child, rank++, is_match, walk);
    if (is_match) return child;
  }
  return -1;
}

// Coupled walk: follows the target's own tokens while they are in the tree. draw(node) is the token
// the target draws after that node, the one plain decoding would draw there; so any tree whatsoever
// leaves the output as it is, and only visited nodes are drawn for. -1 (nothing can be drawn) ends
// the walk and is its last token. Returns the number of accepted nodes.
template <class Draw>
SDE_HD inline int32_t walk_coupled(const TokenTreeView& tree, bool is_root_only,
                                   const WalkView& walk, Draw& draw) {
  int32_t node = 0;
  int32_t num_accepted = 0;
  while (true) {
    const int32_t token = draw(node);
    if (walk.is_writer) walk.out_tokens[num_accepted] = token;
    if (is_root_only || token < 0 || num_accepted == walk.max_depth) break;
    const int32_t child = matching_child(tree, node, token, walk);
    if (child < 0) break;
    if (walk.is_writer) walk.path[num_accepted] = child;
    ++num_accepted;
    node = child;
  }
  return num_accepted;
}

namespace rejection {

// A child was drawn (law Q) when its parent has a proposal and its draft probability is positive,
// else it was chosen (law DELTA).
SDE_HD inline bool is_drawn(const TokenTreeView& tree, int32_t parent, int32_t child) {
  return tree.proposal_rows[parent] >= 0 && tree.probs[child] > 0.0f;
}

// Target probabilities of the support. A target that knows a faster way than one by one overloads
// it.
template <class Target>
SDE_HD inline void fill_target_probs(Target& target, NodeLaw* law) {
  for (int32_t i = 0; i < law->count; ++i)
    law->target_probs[i] = target.probability(law->tokens[i]);
}

template <class Target>
SDE_HD inline void load_law(const TokenTreeView& tree, int32_t node, const ProposalView& proposals,
                            Target& target, NodeLaw* law) {
  const int32_t row = tree.proposal_rows[node];
  law->count = 0;
  if (row >= 0 && tree.first_child[node] >= 0) {
    law->tokens = proposals.tokens + static_cast<int64_t>(row) * proposals.capacity;
    law->draft_probs = proposals.probs + static_cast<int64_t>(row) * proposals.capacity;
    while (law->count < proposals.capacity && law->tokens[law->count] >= 0) ++law->count;
    fill_target_probs(target, law);
  }
  finish_law(law);
}

// Residual weight of a chosen child's token.
template <class Target>
SDE_HD inline double chosen_weight(const NodeLaw& law, const Residual& residual, Target& target,
                                   int32_t token) {
  if (is_struck(residual, token)) return 0.0;
  const int32_t i = support_index(law, token);
  return i >= 0 ? support_weight(law, residual, i) : target.probability(token);
}

constexpr int32_t kNone = -1;
constexpr int32_t kBroken = -2;  // the tree's drawn children are not a prefix of the proposal

// Tests the children of a node, the drawn ones first: the accepted child, or kNone.
template <class Target>
SDE_HD inline int32_t accepted_child(const TokenTreeView& tree, int32_t node, const NodeLaw& law,
                                     Target& target, const NoiseKey& coin, const WalkView& walk,
                                     Residual* residual) {
  int32_t ordinal = 0;
  for (int32_t child = tree.first_child[node]; child >= 0; child = tree.next_sibling[child]) {
    if (!is_drawn(tree, node, child)) continue;
    const int32_t i = residual->num_rejected;
    if (i >= law.count || law.tokens[i] != tree.tokens[child]) return kBroken;
    if (remaining_draft_mass(law, i) < kNegligibleMass) break;
    const bool is_accepted = accepts_drawn(law, residual, uniform(coin, ordinal));
    count_child(tree, child, ordinal++, is_accepted, walk);
    if (is_accepted) return child;
    if (residual->is_collapsed) return kNone;
  }
  for (int32_t child = tree.first_child[node]; child >= 0; child = tree.next_sibling[child]) {
    if (is_drawn(tree, node, child)) continue;
    if (residual->num_struck == kMaxStruck) break;
    const double weight = chosen_weight(law, *residual, target, tree.tokens[child]);
    const bool is_accepted =
        accepts_chosen(residual, tree.tokens[child], weight, uniform(coin, ordinal));
    count_child(tree, child, ordinal++, is_accepted, walk);
    if (is_accepted) return child;
    if (residual->is_collapsed) return kNone;
  }
  return kNone;
}

}  // namespace rejection

// Rejection walk: recursive rejection sampling without replacement; the output's law is the
// target's, its tokens depend on the tree. `target` offers
//
//     bool load(node)                    makes that node's row current; false: nothing can be drawn
//     double probability(token)          p of the current row
//     int32_t draw(law, residual, key)   a token from the residual of the current row
//
// root_key: seed and root position of the sequence. Coins and the last token are keyed by the
// node's creation id, so no number is used twice. Returns the number of accepted nodes.
//
// Where many threads walk one tree together, all of them call this with the same arguments except
// walk.is_writer, and the target's methods are collective.
template <class Target>
SDE_HD inline int32_t walk_rejection(const TokenTreeView& tree, const ProposalView& proposals,
                                     const NoiseKey& root_key, bool is_root_only,
                                     const WalkView& walk, Target& target) {
  int32_t node = 0;
  int32_t num_accepted = 0;
  NodeLaw law;
  Residual residual;
  while (true) {
    if (walk.is_writer) walk.out_tokens[num_accepted] = -1;
    if (!target.load(node)) break;
    law.count = 0;
    law.outside = 1.0;
    reset_residual(&residual);
    NoiseKey key = {root_key.seed, root_key.position, Purpose::kCoin, tree.creation_ids[node]};
    int32_t child = rejection::kNone;
    if (!is_root_only && num_accepted < walk.max_depth) {
      rejection::load_law(tree, node, proposals, target, &law);
      child = rejection::accepted_child(tree, node, law, target, key, walk, &residual);
    }
    if (child == rejection::kBroken) break;
    if (child == rejection::kNone) {
      key.purpose = Purpose::kFinal;
      const int32_t token = target.draw(law, residual, key);
      if (walk.is_writer) walk.out_tokens[num_accepted] = token;
      break;
    }
    if (walk.is_writer) {
      walk.out_tokens[num_accepted] = tree.tokens[child];
      walk.path[num_accepted] = child;
    }
    ++num_accepted;
    node = child;
  }
  return num_accepted;
}

}  // namespace sdengine
