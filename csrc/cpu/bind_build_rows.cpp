#include "cpu/build_rows.h"
#include "cpu/tree_views.h"

namespace sdengine {

void bind_build_rows(pybind11::module_& module) {
  module.def(
      "build_rows",
      [](Program& program, uintptr_t pending_tokens, uintptr_t cu_pending, uintptr_t computed_lens,
         uintptr_t wants_logits, uintptr_t num_seqs, uintptr_t block_tables, int32_t max_blocks,
         int32_t block_size, int32_t window, const Addresses& tree, int32_t max_nodes,
         int32_t tree_words, const Addresses& rows, int32_t max_rows, int32_t mask_words,
         uintptr_t logit_rows, uintptr_t cu_logits, uintptr_t num_logits) {
        BuildRowsArgs args{};
        args.pending_tokens = pointer<const int32_t>(pending_tokens);
        args.cu_pending = pointer<const int32_t>(cu_pending);
        args.computed_lens = pointer<const int32_t>(computed_lens);
        args.wants_logits = pointer<const int32_t>(wants_logits);
        args.num_seqs = pointer<const int32_t>(num_seqs);
        args.tables = {pointer<const int32_t>(block_tables), max_blocks, block_size};
        args.window = window;
        args.has_tree = !tree.empty();
        if (args.has_tree) args.tree = token_tree_view(tree, max_nodes, tree_words);
        args.rows = row_batch_view(rows, max_rows, mask_words);
        args.logit_rows = pointer<int32_t>(logit_rows);
        args.cu_logits = pointer<int32_t>(cu_logits);
        args.num_logits = pointer<int32_t>(num_logits);
        program.append("build_rows", build_rows, args);
      });
}

}  // namespace sdengine
