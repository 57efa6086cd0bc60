// Draft trees from a sequence's own text: what followed earlier occurrences of its last tokens.
//
// Earlier occurrences of the last m tokens (m as long as possible, at most max_ngram, at least
// min_ngram) vote for their continuations, longer matches with more weight. The votes form a trie;
// a child's estimate is its share of its parent's votes less those of earlier siblings, with an
// escape for texts that go on differently. The tree is the best `budget` nodes of the trie by
// reach. An occurrence so close to the end that its continuation runs into the end goes on with
// what it has just proposed, as in Lempel-Ziv copying, so that a loop of any period is continued at
// any depth.
#pragma once

#include <cstdint>

#include "sdengine/extremes.h"
#include "sdengine/hd.h"
#include "sdengine/rank_keys.h"
#include "sdengine/token_search.h"
#include "sdengine/token_tree.h"
#include "sdengine/tree_growth.h"

namespace sdengine {

struct NgramMatch {
  int32_t end;     // index of the first token after the earlier occurrence
  int32_t length;  // tokens that agree, at most max_ngram
};

struct NgramTrieNode {
  int32_t token;
  float weight;  // votes
  int32_t first_child;
  int32_t next_sibling;
};

// A trie node in breadth-first order, siblings by votes.
struct NgramRanked {
  int32_t trie;    // index into the trie
  int32_t parent;  // breadth-first index
  int32_t depth;
  int32_t rank;
  float value;
  float estimate;
};

struct NgramMatchArgs {
  const int32_t* history;       // [B, S]
  int64_t history_stride;       // S
  const int32_t* history_lens;  // [B]
  const float* root_values;     // [B] or null: 1
  const int32_t* node_budgets;  // [B]
  const int32_t* depth_limits;  // [B]
  const int32_t* stop_tokens;   // [B, num_stop_tokens]
  const float* calibration;     // [B, 8, 32] or null
  const int32_t* num_seqs;      // [1]
  int32_t num_stop_tokens;
  int32_t min_ngram;
  int32_t max_ngram;
  int32_t max_matches;
  int32_t max_depth;
  int32_t max_children;
  DraftTreeView tree;
  int64_t* scratch;  // [B, ngram_scratch_words]
};

// 64-bit words of scratch that one sequence needs.
SDE_HD inline int64_t ngram_scratch_words(int64_t max_matches, int64_t max_depth) {
  const int64_t nodes = max_matches * max_depth + 1;
  return nodes + max_matches + 2 * nodes + 3 * nodes + (nodes + 1) / 2;
}

namespace ngram {

// Votes of a match grow fourfold with each token of its length, up to 4^8: sums stay exact in a
// float.
constexpr int32_t kMaxWeightSteps = 8;
// Votes for "something else", in units of the shortest match.
constexpr float kEscapeWeight = 1.0f;
constexpr int32_t kScanBlock = 32;

struct Workspace {
  uint64_t* keys;
  NgramMatch* matches;
  NgramTrieNode* trie;
  NgramRanked* ranked;
  int32_t* remap;
};

// `words`: ngram_scratch_words of one sequence.
SDE_HD inline Workspace workspace(const NgramMatchArgs& args, int64_t* words) {
  const int64_t nodes = int64_t{args.max_matches} * args.max_depth + 1;
  Workspace space;
  space.keys = reinterpret_cast<uint64_t*>(words);
  space.matches = reinterpret_cast<NgramMatch*>(words += nodes);
  space.trie = reinterpret_cast<NgramTrieNode*>(words += args.max_matches);
  space.ranked = reinterpret_cast<NgramRanked*>(words += 2 * nodes);
  space.remap = reinterpret_cast<int32_t*>(words + 3 * nodes);
  return space;
}

SDE_HD inline float match_weight(const NgramMatchArgs& args, int32_t length) {
  const int32_t steps = min_of(length - args.min_ngram, kMaxWeightSteps);
  return static_cast<float>(1 << (2 * steps));
}

// How many tokens before `end` agree with the last tokens of the text, at most `limit`.
SDE_HD inline int32_t match_length(const int32_t* text, int32_t count, int32_t end, int32_t limit) {
  const int32_t longest = min_of(limit, end);
  int32_t length = 0;
  while (length < longest && text[end - 1 - length] == text[count - 1 - length]) ++length;
  return length;
}

// Inserts by length descending, earlier insertions first among equals; returns the new count.
SDE_HD inline int32_t insert_match(NgramMatch* matches, int32_t count, int32_t capacity,
                                   NgramMatch match) {
  if (count == capacity && matches[count - 1].length >= match.length) return count;
  int32_t at = count < capacity ? count : count - 1;
  for (; at > 0 && matches[at - 1].length < match.length; --at) matches[at] = matches[at - 1];
  matches[at] = match;
  return count < capacity ? count + 1 : count;
}

// The longest earlier matches, the most recent first among equals. One backward pass; stops when
// only older equals remain.
SDE_HD inline int32_t find_matches(const NgramMatchArgs& args, const int32_t* text, int32_t count,
                                   NgramMatch* matches) {
  const int32_t last = count > 0 ? text[count - 1] : -1;
  int32_t found = 0;
  for (int32_t high = count - 1; high >= args.min_ngram; high -= kScanBlock) {
    const int32_t low =
        high - kScanBlock >= args.min_ngram - 1 ? high - kScanBlock : args.min_ngram - 1;
    if (!contains(text + low, high - low, last)) continue;
    for (int32_t end = high; end > low; --end) {
      if (text[end - 1] != last) continue;
      const int32_t length = match_length(text, count, end, args.max_ngram);
      if (length < args.min_ngram) continue;
      found = insert_match(matches, found, args.max_matches, {end, length});
      if (found == args.max_matches && matches[found - 1].length == args.max_ngram) return found;
    }
  }
  return found;
}

// The child of `node` with this token, made if there is none.
SDE_HD inline int32_t child_of(NgramTrieNode* trie, int32_t node, int32_t token, int32_t* count) {
  int32_t* link = &trie[node].first_child;
  while (*link >= 0 && trie[*link].token != token) link = &trie[*link].next_sibling;
  if (*link < 0) {
    *link = *count;
    trie[(*count)++] = {token, 0.0f, -1, -1};
  }
  return *link;
}

// Adds the continuation of every match; returns the number of trie nodes, root included.
SDE_HD inline int32_t build_trie(const NgramMatchArgs& args, int64_t b, const int32_t* text,
                                 int32_t count, int32_t depth, const Workspace& space,
                                 int32_t num_matches) {
  int32_t nodes = 1;
  space.trie[0] = {-1, 0.0f, -1, -1};
  for (int32_t m = 0; m < num_matches; ++m) {
    const NgramMatch match = space.matches[m];
    const float weight = match_weight(args, match.length);
    space.trie[0].weight += weight;
    int32_t node = 0;
    int32_t at = match.end;
    for (int32_t d = 0; d < depth; ++d) {
      const int32_t token = text[at];
      node = child_of(space.trie, node, token, &nodes);
      space.trie[node].weight += weight;
      if (is_stop_token(args, b, token)) break;
      if (++at == count) at = match.end;
    }
  }
  return nodes;
}

// Appends the children of a ranked node, most votes first; returns the new count.
SDE_HD inline int32_t rank_children(const NgramMatchArgs& args, int64_t b, const Workspace& space,
                                    int32_t parent, int32_t count) {
  const NgramRanked& above = space.ranked[parent];
  const int32_t first = count;
  for (int32_t child = space.trie[above.trie].first_child; child >= 0;
       child = space.trie[child].next_sibling) {
    int32_t at = count++;
    for (; at > first && space.trie[space.ranked[at - 1].trie].weight < space.trie[child].weight;
         --at) {
      space.ranked[at] = space.ranked[at - 1];
    }
    space.ranked[at].trie = child;
  }
  count = min_of(count, first + args.max_children);
  float votes = space.trie[above.trie].weight + kEscapeWeight;  // that are left
  float chance = above.value;
  float bound = above.value;
  for (int32_t at = first; at < count; ++at) {
    const int32_t child = space.ranked[at].trie;
    const float estimate = space.trie[child].weight / votes;
    const float* table = expand::rank_table(args.calibration, b, at - first);
    const float acceptance = expand::acceptance_of(estimate, table);
    const float value = min_of(chance * acceptance, bound);
    space.ranked[at] = {child, parent, above.depth + 1, at - first, value, estimate};
    votes -= space.trie[child].weight;
    chance = chance * (1.0f - acceptance);
    bound = value;
  }
  return count;
}

// Writes the ranked nodes whose key is at least `cut`; nodes of value 0 are never written.
SDE_HD inline void write_tree(DraftTreeView tree, const Workspace& space, int32_t count,
                              uint64_t cut) {
  space.remap[0] = 0;
  for (int32_t r = 1; r < count; ++r) {
    const NgramRanked& node = space.ranked[r];
    if (rank_key(node.value, r) < cut || !(node.value > 0.0f)) continue;
    const int32_t i = space.remap[r] = ++*tree.num_nodes;
    tree.tokens[i] = space.trie[node.trie].token;
    tree.parents[i] = space.remap[node.parent];
    tree.depths[i] = node.depth;
    tree.ranks[i] = node.rank;
    tree.values[i] = tree.reach[i] = node.value;
    tree.estimates[i] = node.estimate;
    tree.probs[i] = 1.0f;
    tree.draft_slots[i] = tree.proposal_rows[i] = -1;
  }
}

}  // namespace ngram

// What one sequence may draft, from which text.
struct NgramTask {
  DraftTreeView tree;
  int32_t budget;
  int32_t depth;
  const int32_t* text;
  int32_t length;
  ngram::Workspace space;
};

SDE_HD inline NgramTask ngram_task(const NgramMatchArgs& args, int64_t b) {
  NgramTask task;
  task.tree = args.tree.sequence(b);
  task.budget = min_of(args.node_budgets[b], task.tree.capacity);
  task.depth = min_of(args.depth_limits[b], args.max_depth);
  task.text = args.history + b * args.history_stride;
  task.length = task.budget > 0 && task.depth > 0 ? args.history_lens[b] : 0;
  int64_t* words = args.scratch + b * ngram_scratch_words(args.max_matches, args.max_depth);
  task.space = ngram::workspace(args, words);
  return task;
}

// Makes the tree of the matches that were found.
SDE_HD inline void draft_matches(const NgramMatchArgs& args, int64_t b, const NgramTask& task,
                                 int32_t num_matches) {
  if (num_matches == 0) return;
  const ngram::Workspace& space = task.space;
  ngram::build_trie(args, b, task.text, task.length, task.depth, space, num_matches);
  space.ranked[0] = {0, -1, 0, 0, task.tree.values[0], 1.0f};
  int32_t count = 1;
  for (int32_t r = 0; r < count; ++r) count = ngram::rank_children(args, b, space, r, count);
  for (int32_t r = 1; r < count; ++r) space.keys[r - 1] = rank_key(space.ranked[r].value, r);
  const bool is_cut = count - 1 > task.budget;
  const uint64_t cut = is_cut ? nth_largest(space.keys, count - 1, task.budget) : 0;
  ngram::write_tree(task.tree, space, count, cut);
}

// Drafts one sequence.
SDE_HD inline void match_ngrams(const NgramMatchArgs& args, int64_t b) {
  const NgramTask task = ngram_task(args, b);
  expand::reset_to_root(task.tree, args.root_values, b);
  draft_matches(args, b, task,
                ngram::find_matches(args, task.text, task.length, task.space.matches));
}

}  // namespace sdengine
