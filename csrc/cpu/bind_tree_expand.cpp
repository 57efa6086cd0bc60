#include "cpu/tree_expand.h"
#include "cpu/tree_views.h"

namespace sdengine {
namespace {

// The scratch tensor, cut into the arrays that one layer needs.
void place_scratch(TreeExpandArgs& args, uintptr_t scratch) {
  const int64_t nodes = args.tree.capacity;
  const int64_t candidates = int64_t{args.max_width} * args.num_candidates;
  const int64_t keys = std::max(args.batch_size * nodes, nodes + candidates);
  static_assert(sizeof(Candidate) == 3 * sizeof(int64_t), "three words of scratch per candidate");
  int64_t* words = pointer<int64_t>(scratch);
  args.keys = reinterpret_cast<uint64_t*>(words);
  args.buffer = reinterpret_cast<uint64_t*>(words + keys);
  args.candidates = reinterpret_cast<Candidate*>(words + 2 * keys);
  args.remap = reinterpret_cast<int32_t*>(words + 2 * keys + 3 * candidates);
}

}  // namespace

void bind_tree_expand(pybind11::module_& module) {
  module.def("tree_expand",
             [](Program& program, int32_t layer, int32_t rule, int32_t max_children,
                int32_t max_width, int32_t window, int32_t proposal_offset, int32_t num_candidates,
                int32_t num_stop_tokens, int32_t batch_size, const Addresses& inputs,
                const Addresses& tree, int32_t max_nodes, uintptr_t block_tables,
                int32_t max_blocks, int32_t block_size, const Addresses& rows, int32_t max_rows,
                int32_t mask_words, uintptr_t creation_ids, uintptr_t scratch, int32_t num_prices) {
               expect_addresses(inputs, 15, "tree_expand");
               TreeExpandArgs args{};
               args.layer = layer;
               args.rule = static_cast<ExpandRule>(rule);
               args.max_children = max_children;
               args.max_width = max_width;
               args.window = window;
               args.proposal_offset = proposal_offset;
               args.num_candidates = num_candidates;
               args.num_stop_tokens = num_stop_tokens;
               args.batch_size = batch_size;
               args.candidate_tokens = pointer<const int32_t>(inputs[0]);
               args.candidate_probs = pointer<const float>(inputs[1]);
               args.cu_rows = pointer<const int32_t>(inputs[2]);
               args.frontier_nodes = pointer<const int32_t>(inputs[3]);
               args.tree_starts = pointer<const int32_t>(inputs[4]);
               args.node_budgets = pointer<const int32_t>(inputs[5]);
               args.total_budget = pointer<const int32_t>(inputs[6]);
               args.depth_limits = pointer<const int32_t>(inputs[7]);
               args.stop_tokens = pointer<const int32_t>(inputs[8]);
               args.calibration = pointer<const float>(inputs[9]);
               args.min_layer_gain = pointer<const float>(inputs[10]);
               args.num_seqs = pointer<const int32_t>(inputs[11]);
               args.row_prices = pointer<const float>(inputs[12]);
               args.cu_pending = pointer<const int32_t>(inputs[13]);
               args.root_values = pointer<const float>(inputs[14]);
               args.num_prices = num_prices;
               args.tree = draft_tree_view(tree, max_nodes);
               args.tables = {pointer<const int32_t>(block_tables), max_blocks, block_size};
               if (max_rows > 0) args.rows = row_batch_view(rows, max_rows, mask_words);
               args.creation_ids = pointer<int32_t>(creation_ids);
               place_scratch(args, scratch);
               program.append("tree_expand", tree_expand, args);
             });
}

}  // namespace sdengine
