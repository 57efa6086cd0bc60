// What every sequence does in this step, from the lengths that the steps before left behind.
#pragma once

#include <cstdint>

#include "sdengine/extremes.h"
#include "sdengine/hd.h"
#include "sdengine/token_search.h"
#include "sdengine/token_tree.h"

namespace sdengine {

struct BeginStepArgs {
  const int32_t* num_seqs;        // [1]
  const int32_t* min_running;     // [1], fewest sequences with something to compute; else none has
  const int32_t* scheduled_lens;  // [B], tokens to compute at most; 0: takes no part
  const int32_t* can_draft;       // [B], whether blocks for a tree are there
  const int32_t* max_total_lens;  // [B], length at which the sequence ends
  const int32_t* groups;          // [B], equal where sequences are waited for together
  const int32_t* is_balanced;     // [1], whether of a group those further from their end come first
  const int32_t* first_stops;     // [B], position of the first token that may stop it
  const int32_t* stop_tokens;     // [B, S_stop], -1: none
  int32_t num_stop_tokens;        // S_stop
  const int32_t* depth_limit;     // [1], draft layers of this step
  const int32_t* node_limit;      // [1], nodes of a tree of this step
  const int32_t* history;         // [B, S]
  int64_t max_history;            // S
  const int32_t* history_lens;    // [B]
  const int32_t* num_emitted;     // [B], tokens that its last step appended
  const int32_t* computed_lens;   // [B]
  // Null where no draft's cache follows in this step.
  const int32_t* draft_computed_lens;  // [B]
  int32_t max_draft_rows;              // most draft rows over all sequences
  bool has_trees;                      // whether trees are grown in this step
  int32_t* pending_lens;               // [B]
  int32_t* wants_logits;               // [B]
  int32_t* max_emit;                   // [B]
  int32_t* draft_pending_lens;         // [B]
  int32_t* draft_wants_logits;         // [B]
  int32_t* node_budgets;               // [B]
  int32_t* depth_limits;               // [B]
  float* root_values;                  // [B]
};

namespace begin {

// Whether its last step ended the sequence, which the host may not have read yet.
SDE_HD inline bool has_ended(const BeginStepArgs& args, int64_t b) {
  const int32_t length = args.history_lens[b];
  if (length >= args.max_total_lens[b]) return true;
  const int32_t* history = args.history + b * args.max_history;
  const int32_t known = length - args.num_emitted[b];
  for (int32_t i = known > args.first_stops[b] ? known : args.first_stops[b]; i < length; ++i) {
    if (is_stop_token(args, b, history[i])) return true;
  }
  return false;
}

// Tokens of sequence b that the target computes.
SDE_HD inline int32_t num_pending(const BeginStepArgs& args, int64_t b) {
  if (args.scheduled_lens[b] <= 0 || has_ended(args, b)) return 0;
  return min_of(args.scheduled_lens[b], args.history_lens[b] - args.computed_lens[b]);
}

// Whether enough sequences have something to compute for any to take part.
SDE_HD inline bool are_enough(const BeginStepArgs& args, int32_t num_running) {
  return num_running >= *args.min_running;
}

// Tokens that the draft has to compute to be where the target is then.
SDE_HD inline int32_t num_missing(const BeginStepArgs& args, int64_t b, int32_t pending) {
  if (args.draft_computed_lens == nullptr || pending == 0) return 0;
  const int32_t missing = args.computed_lens[b] + pending - args.draft_computed_lens[b];
  return missing > 0 ? missing : 0;
}

// Whether trees of a group are weighed against each other in this step.
SDE_HD inline bool is_weighing(const BeginStepArgs& args) {
  return args.has_trees && *args.is_balanced != 0;
}

// Tokens that sequence i may still get, if it takes part and is waited for together with b; else 0.
SDE_HD inline int32_t left_in_group(const BeginStepArgs& args, int64_t b, int64_t i,
                                    int32_t pending) {
  if (pending == 0 || args.groups[i] != args.groups[b]) return 0;
  const int32_t left = args.max_total_lens[i] - args.history_lens[i];
  return left > 0 ? left : 0;
}

// What a group has left together, of those that take part.
struct GroupLeft {
  int32_t size = 0;
  int64_t squares = 0;  // sum of the squared tokens left to each

  SDE_HD void add(int32_t left) {
    size += left > 0 ? 1 : 0;
    squares += int64_t{left} * left;
  }
};

// What sequence b's group has left, from what every sequence has pending.
SDE_HD inline GroupLeft group_left(const BeginStepArgs& args, int64_t b) {
  GroupLeft group;
  if (!is_weighing(args)) return group;
  for (int32_t i = 0; i < *args.num_seqs; ++i)
    group.add(left_in_group(args, b, i, args.pending_lens[i]));
  return group;
}

// What a tree's nodes are worth beside those of its group: by the tokens left, squared; 1 on
// average, so that a row and a layer cost what they do when nobody is weighed. Squared: batches of
// two and four texts of one length ended 0 to 2% sooner than by the share itself, which was 0 to 4%
// better than its root (benchmarks.modelled_budgets).
SDE_HD inline float root_value(int32_t left, const GroupLeft& group) {
  if (left <= 0 || group.squares == 0) return 1.0f;
  return static_cast<float>(int64_t{left} * left * group.size) / static_cast<float>(group.squares);
}

}  // namespace begin

// Writes sequence b's part.
//   pending: begin::num_pending of it.
//   earlier: draft tokens that the sequences before it are missing; what is left of the rows is
//   b's.
//   group: what its group has left; nothing: nobody is weighed.
SDE_HD inline void begin_sequence(const BeginStepArgs& args, int64_t b, int32_t pending,
                                  int32_t earlier, const begin::GroupLeft& group) {
  const int32_t length = args.history_lens[b];
  const int32_t missing = begin::num_missing(args, b, pending);
  const int32_t room = args.max_draft_rows > earlier ? args.max_draft_rows - earlier : 0;
  const int32_t followed = min_of(missing, room);
  const int32_t left = args.max_total_lens[b] - length;
  const bool decodes = pending > 0 && args.computed_lens[b] + pending == length;
  const bool drafts = decodes && args.has_trees && args.can_draft[b] != 0 && followed == missing;
  // A tree below the last token that may still be emitted would be cut off.
  const int32_t depth = drafts ? min_of(left - 1, *args.depth_limit) : 0;
  args.pending_lens[b] = pending;
  args.wants_logits[b] = !decodes ? kNoLogits : args.has_trees ? kRootAndNodes : kRootOnly;
  args.max_emit[b] = left > 0 ? left : 0;
  args.draft_pending_lens[b] = followed;
  args.draft_wants_logits[b] = depth > 0 ? kRootAndNodes : kNoLogits;
  args.node_budgets[b] = depth > 0 ? *args.node_limit : 0;
  args.depth_limits[b] = depth;
  args.root_values[b] = pending > 0 ? begin::root_value(left, group) : 1.0f;
}

SDE_HD inline void begin_sequences(const BeginStepArgs& args) {
  const int32_t num_seqs = *args.num_seqs;
  int32_t earlier = 0, num_running = 0;
  for (int32_t b = 0; b < num_seqs; ++b) {
    args.pending_lens[b] = begin::num_pending(args, b);
    num_running += args.pending_lens[b] > 0;
  }
  const bool go_on = begin::are_enough(args, num_running);
  for (int32_t b = 0; b < num_seqs; ++b) {
    const int32_t pending = go_on ? args.pending_lens[b] : 0;
    begin_sequence(args, b, pending, earlier, begin::group_left(args, b));
    earlier += begin::num_missing(args, b, pending);
  }
}

}  // namespace sdengine
