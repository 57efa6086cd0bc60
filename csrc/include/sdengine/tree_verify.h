// The walk of a verifier through one sequence's token tree, from the root to the last accepted
// node.
#pragma once

#include <cstdint>

#include "sdengine/calibration.h"
#include "sdengine/hd.h"
#include "sdengine/token_tree.h"

namespace sdengine {

// What a walk writes for one sequence.
struct WalkView {
  int32_t* path;        // [D], accepted nodes from the top
  int32_t* out_tokens;  // [D + 1], their tokens, then one more token
  int32_t max_depth;    // D
  int32_t* tried;       // [32], children tested, by calibration bin of their raw estimate; added to
  int32_t* accepted;    // [32], those of them that were accepted; added to
};

struct WalkEnd {
  int32_t num_accepted;
  int32_t final_node;
};

SDE_HD inline void count_child(const TokenTreeView& tree, int32_t child, bool is_accepted,
                               const WalkView& walk) {
  const int bin = calibration_bin(tree.estimates[child]);
  walk.tried[bin] += 1;
  walk.accepted[bin] += is_accepted ? 1 : 0;
}

// Child of `node` that carries `token`, or -1; counts every child as tried.
SDE_HD inline int32_t matching_child(const TokenTreeView& tree, int32_t node, int32_t token,
                                     const WalkView& walk) {
  int32_t match = -1;
  for (int32_t child = tree.first_child[node]; child >= 0; child = tree.next_sibling[child]) {
    const bool is_match = match < 0 && tree.tokens[child] == token;
    if (is_match) match = child;
    count_child(tree, child, is_match, walk);
  }
  return match;
}

// Coupled walk: follows the target's own tokens while they are in the tree. target_tokens[i] is the
// token the target draws after node i (what plain decoding would draw there), so any tree
// whatsoever leaves the output as it is. -1 (nothing could be drawn) ends the walk and is its last
// token.
SDE_HD inline WalkEnd walk_coupled(const TokenTreeView& tree, const int32_t* target_tokens,
                                   bool is_root_only, const WalkView& walk) {
  int32_t node = 0;
  int32_t num_accepted = 0;
  while (true) {
    const int32_t token = target_tokens[node];
    walk.out_tokens[num_accepted] = token;
    if (is_root_only || token < 0 || num_accepted == walk.max_depth) break;
    const int32_t child = matching_child(tree, node, token, walk);
    if (child < 0) break;
    walk.path[num_accepted++] = child;
    node = child;
  }
  return {num_accepted, node};
}

}  // namespace sdengine
