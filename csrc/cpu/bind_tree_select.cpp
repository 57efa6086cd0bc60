#include "cpu/tree_select.h"
#include "cpu/tree_views.h"

namespace sdengine {

void bind_tree_select(pybind11::module_& module) {
  module.def("tree_select", [](Program& program, const Addresses& draft, const Addresses& tree,
                               int32_t batch_size, int32_t max_nodes, int32_t mask_words,
                               uintptr_t thresholds, int32_t max_rows, uintptr_t cu_pending,
                               uintptr_t num_seqs, uintptr_t total_budget, uintptr_t scratch) {
    TreeSelectArgs args{};
    args.draft = draft_tree_view(draft, max_nodes);
    args.tree = token_tree_view(tree, max_nodes, mask_words);
    args.batch_size = batch_size;
    args.thresholds = pointer<const float>(thresholds);
    args.max_rows = max_rows;
    args.cu_pending = pointer<const int32_t>(cu_pending);
    args.num_seqs = pointer<const int32_t>(num_seqs);
    args.total_budget = pointer<const int32_t>(total_budget);
    const int64_t keys = int64_t{batch_size} * max_nodes;
    args.keys = pointer<uint64_t>(scratch);
    args.buffer = args.keys + keys;
    args.sizes = reinterpret_cast<int32_t*>(args.buffer + keys);
    args.places = args.sizes + max_nodes + 1;
    args.next = args.places + max_nodes + 1;
    program.append("tree_select", tree_select, args);
  });
}

}  // namespace sdengine
