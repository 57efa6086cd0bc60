#include "cpu/begin_step.h"
#include "cpu/bind.h"

namespace sdengine {

void bind_begin_step(pybind11::module_& module) {
  module.def(
      "begin_step",
      [](Program& program, uintptr_t num_seqs, uintptr_t min_running, uintptr_t scheduled_lens,
         uintptr_t can_draft, uintptr_t max_total_lens, uintptr_t groups, uintptr_t is_balanced,
         uintptr_t first_stops, uintptr_t stop_tokens, int32_t num_stop_tokens,
         uintptr_t depth_limit, uintptr_t history, int64_t max_history, uintptr_t history_lens,
         uintptr_t num_emitted, uintptr_t computed_lens, uintptr_t draft_computed_lens,
         int32_t max_draft_rows, int32_t max_nodes, bool has_trees, uintptr_t pending_lens,
         uintptr_t wants_logits, uintptr_t max_emit, uintptr_t draft_pending_lens,
         uintptr_t draft_wants_logits, uintptr_t node_budgets, uintptr_t depth_limits,
         uintptr_t root_values) {
        BeginStepArgs args{};
        args.num_seqs = pointer<const int32_t>(num_seqs);
        args.min_running = pointer<const int32_t>(min_running);
        args.scheduled_lens = pointer<const int32_t>(scheduled_lens);
        args.can_draft = pointer<const int32_t>(can_draft);
        args.max_total_lens = pointer<const int32_t>(max_total_lens);
        args.groups = pointer<const int32_t>(groups);
        args.is_balanced = pointer<const int32_t>(is_balanced);
        args.first_stops = pointer<const int32_t>(first_stops);
        args.stop_tokens = pointer<const int32_t>(stop_tokens);
        args.num_stop_tokens = num_stop_tokens;
        args.depth_limit = pointer<const int32_t>(depth_limit);
        args.history = pointer<const int32_t>(history);
        args.max_history = max_history;
        args.history_lens = pointer<const int32_t>(history_lens);
        args.num_emitted = pointer<const int32_t>(num_emitted);
        args.computed_lens = pointer<const int32_t>(computed_lens);
        args.draft_computed_lens = pointer<const int32_t>(draft_computed_lens);
        args.max_draft_rows = max_draft_rows;
        args.max_nodes = max_nodes;
        args.has_trees = has_trees;
        args.pending_lens = pointer<int32_t>(pending_lens);
        args.wants_logits = pointer<int32_t>(wants_logits);
        args.max_emit = pointer<int32_t>(max_emit);
        args.draft_pending_lens = pointer<int32_t>(draft_pending_lens);
        args.draft_wants_logits = pointer<int32_t>(draft_wants_logits);
        args.node_budgets = pointer<int32_t>(node_budgets);
        args.depth_limits = pointer<int32_t>(depth_limits);
        args.root_values = pointer<float>(root_values);
        program.append("begin_step", begin_step, args);
      });
}

}  // namespace sdengine
