#include "cpu/bind.h"
#include "cpu/commit_plan.h"

namespace sdengine {

void bind_commit_plan(pybind11::module_& module) {
  module.def(
      "commit_plan",
      [](Program& program, uintptr_t num_seqs, uintptr_t wants_logits, uintptr_t pending_lens,
         uintptr_t num_accepted, uintptr_t path, uintptr_t out_tokens, int32_t max_depth,
         uintptr_t max_emit, uintptr_t num_emitted, uintptr_t history, int64_t max_history,
         uintptr_t history_lens, uintptr_t computed_lens, uintptr_t move_src, uintptr_t move_start,
         uintptr_t num_moves, uintptr_t draft_slots, int32_t tree_stride,
         uintptr_t draft_pending_lens, uintptr_t draft_computed_lens, uintptr_t draft_move_src,
         uintptr_t draft_move_start, uintptr_t num_draft_moves, uintptr_t output_counts,
         int64_t vocab_size) {
        CommitPlanArgs args{};
        args.num_seqs = pointer<const int32_t>(num_seqs);
        args.wants_logits = pointer<const int32_t>(wants_logits);
        args.pending_lens = pointer<const int32_t>(pending_lens);
        args.num_accepted = pointer<const int32_t>(num_accepted);
        args.path = pointer<const int32_t>(path);
        args.out_tokens = pointer<const int32_t>(out_tokens);
        args.max_depth = max_depth;
        args.max_emit = pointer<const int32_t>(max_emit);
        args.num_emitted = pointer<int32_t>(num_emitted);
        args.history = pointer<int32_t>(history);
        args.max_history = max_history;
        args.history_lens = pointer<int32_t>(history_lens);
        args.computed_lens = pointer<int32_t>(computed_lens);
        args.target_moves = {pointer<int32_t>(move_src), pointer<int32_t>(move_start),
                             pointer<int32_t>(num_moves), max_depth};
        args.draft_slots = pointer<const int32_t>(draft_slots);
        args.tree_stride = tree_stride;
        args.draft_pending_lens = pointer<const int32_t>(draft_pending_lens);
        args.draft_computed_lens = pointer<int32_t>(draft_computed_lens);
        args.draft_moves = {pointer<int32_t>(draft_move_src), pointer<int32_t>(draft_move_start),
                            pointer<int32_t>(num_draft_moves), max_depth};
        args.output_counts = pointer<int32_t>(output_counts);
        args.vocab_size = vocab_size;
        program.append("commit_plan", commit_plan, args);
      });
}

}  // namespace sdengine
