#include "cpu/ngram_match.h"
#include "cpu/tree_views.h"

namespace sdengine {

void bind_ngram_match(pybind11::module_& module) {
  module.def("ngram_match",
             [](Program& program, uintptr_t history, int64_t history_stride, uintptr_t history_rows,
                uintptr_t history_lens, uintptr_t root_values, uintptr_t node_budgets,
                uintptr_t depth_limits, uintptr_t stop_tokens, int32_t num_stop_tokens,
                uintptr_t calibration, uintptr_t num_seqs, int32_t min_ngram, int32_t max_ngram,
                int32_t max_matches, int32_t max_depth, int32_t max_children, const Addresses& tree,
                int32_t max_nodes, uintptr_t scratch) {
               NgramMatchArgs args{};
               args.history = pointer<const int32_t>(history);
               args.history_stride = history_stride;
               args.history_rows = pointer<const int32_t>(history_rows);
               args.history_lens = pointer<const int32_t>(history_lens);
               args.root_values = pointer<const float>(root_values);
               args.node_budgets = pointer<const int32_t>(node_budgets);
               args.depth_limits = pointer<const int32_t>(depth_limits);
               args.stop_tokens = pointer<const int32_t>(stop_tokens);
               args.num_stop_tokens = num_stop_tokens;
               args.calibration = pointer<const float>(calibration);
               args.num_seqs = pointer<const int32_t>(num_seqs);
               args.min_ngram = min_ngram;
               args.max_ngram = max_ngram;
               args.max_matches = max_matches;
               args.max_depth = max_depth;
               args.max_children = max_children;
               args.tree = draft_tree_view(tree, max_nodes);
               args.scratch = pointer<int64_t>(scratch);
               program.append("ngram_match", ngram_match, args);
             });
  module.def("ngram_scratch_words", &ngram_scratch_words);
}

}  // namespace sdengine
