// Bookkeeping after a walk: which KV entries move where, how far each cache reaches, what the
// history is.
#pragma once

#include <cstdint>

#include "sdengine/extremes.h"
#include "sdengine/hd.h"
#include "sdengine/move_plan.h"
#include "sdengine/token_tree.h"

namespace sdengine {

struct CommitPlanArgs {
  const int32_t* num_seqs;      // [1]
  const int32_t* wants_logits;  // [B], as for build_rows
  const int32_t* pending_lens;  // [B], tokens of this step's chain; 0: took no part
  const int32_t* num_accepted;  // [B]
  const int32_t* path;          // [B, D]
  const int32_t* out_tokens;    // [B, D + 1]
  int32_t max_depth;            // D
  const int32_t* max_emit;      // [B]
  int32_t* num_emitted;         // [B]
  int32_t* history;             // [B, S]
  int64_t max_history;          // S
  int32_t* history_lens;        // [B]
  int32_t* computed_lens;       // [B]
  MovePlanView target_moves;
  // Null without a draft model.
  const int32_t* draft_slots;         // [B, T + 1]
  int32_t tree_stride;                // T + 1
  const int32_t* draft_pending_lens;  // [B]
  int32_t* draft_computed_lens;       // [B]
  MovePlanView draft_moves;
  // Null without penalties.
  int32_t* output_counts;  // [B, V]
  int64_t vocab_size;
};

namespace commit {

// Tokens of out_tokens that enter the history: up to the limit, the room, and the first that could
// not be drawn.
SDE_HD inline int32_t tokens_to_emit(const CommitPlanArgs& args, int64_t b) {
  if (args.wants_logits[b] == kNoLogits || args.pending_lens[b] == 0) return 0;
  const int64_t room = args.max_history - args.history_lens[b];
  int32_t limit = min_of(args.num_accepted[b] + 1, args.max_emit[b]);
  if (room < limit) limit = static_cast<int32_t>(room);
  const int32_t* tokens = args.out_tokens + b * (args.max_depth + 1);
  int32_t emitted = 0;
  while (emitted < limit && tokens[emitted] >= 0) ++emitted;
  return emitted;
}

SDE_HD inline void append_history(const CommitPlanArgs& args, int64_t b, int32_t emitted) {
  const int32_t* tokens = args.out_tokens + b * (args.max_depth + 1);
  int32_t* end = args.history + b * args.max_history + args.history_lens[b];
  for (int32_t i = 0; i < emitted; ++i) {
    end[i] = tokens[i];
    if (args.output_counts != nullptr) args.output_counts[b * args.vocab_size + tokens[i]] += 1;
  }
  args.history_lens[b] += emitted;
}

// Gathers the path's entries (path node -> logical base + index[node]) to base + 1, base + 2, ...;
// what lies right already at the front is left out.
SDE_HD inline void plan_moves(const MovePlanView& plan, int64_t b, const int32_t* path,
                              int32_t count, int32_t base, const int32_t* index) {
  int32_t settled = 0;
  while (settled < count &&
         (index == nullptr ? path[settled] : index[path[settled]]) == settled + 1)
    ++settled;
  plan.dst_start[b] = base + 1 + settled;
  plan.num_moves[b] = count - settled;
  for (int32_t j = settled; j < count; ++j) {
    plan.source[b * plan.capacity + j - settled] =
        base + (index == nullptr ? path[j] : index[path[j]]);
  }
}

// The draft's cache: its own pending tokens, then the accepted nodes it has forwarded, a prefix of
// the path.
SDE_HD inline void commit_draft(const CommitPlanArgs& args, int64_t b, int32_t root, int32_t kept) {
  int32_t reached = args.draft_computed_lens[b] + args.draft_pending_lens[b];
  int32_t forwarded = 0;
  const int32_t* path = args.path + b * args.max_depth;
  const int32_t* slots =
      args.draft_slots == nullptr ? nullptr : args.draft_slots + b * args.tree_stride;
  if (slots != nullptr && reached == root + 1) {
    while (forwarded < kept && slots[path[forwarded]] > 0) ++forwarded;
  }
  plan_moves(args.draft_moves, b, path, forwarded, root, slots);
  reached += forwarded;
  // The last known token stays pending: its logits start the next tree.
  args.draft_computed_lens[b] = min_of(reached, args.history_lens[b] - 1);
}

}  // namespace commit

// Commits sequence b. Of e emitted tokens the last stays pending: it is the next root.
SDE_HD inline void commit_sequence(const CommitPlanArgs& args, int64_t b) {
  const int32_t emitted = commit::tokens_to_emit(args, b);
  const int32_t root = args.computed_lens[b] + args.pending_lens[b] - 1;
  const int32_t kept = emitted > 0 ? emitted - 1 : 0;
  commit::append_history(args, b, emitted);
  commit::plan_moves(args.target_moves, b, args.path + b * args.max_depth, kept, root, nullptr);
  const int32_t unread = args.wants_logits[b] == kNoLogits ? 0 : 1;
  args.computed_lens[b] = min_of(root + 1 + kept, args.history_lens[b] - unread);
  // A step without the sequence leaves it as it is: what ended it is found however long ago.
  if (args.pending_lens[b] != 0) args.num_emitted[b] = emitted;
  if (args.draft_computed_lens != nullptr) commit::commit_draft(args, b, root, kept);
}

}  // namespace sdengine
