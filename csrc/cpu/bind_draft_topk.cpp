#include "cpu/bind.h"
#include "cpu/draft_topk.h"

namespace sdengine {

void bind_draft_topk(pybind11::module_& module) {
  module.def("draft_topk",
             [](Program& program, uintptr_t logits, uintptr_t rows, uintptr_t row_seq,
                uintptr_t positions, uintptr_t node_slots, uintptr_t temperature, uintptr_t seeds,
                uintptr_t tree_starts, uintptr_t out_tokens, uintptr_t out_probs,
                uintptr_t num_rows, int64_t vocab_size, int32_t num_candidates, bool is_fresh) {
               DraftTopkArgs args{};
               args.logits = pointer<const float>(logits);
               args.rows = pointer<const int32_t>(rows);
               args.row_seq = pointer<const int32_t>(row_seq);
               args.positions = pointer<const int32_t>(positions);
               args.node_slots = pointer<const int32_t>(node_slots);
               args.temperature = pointer<const float>(temperature);
               args.seeds = pointer<const int64_t>(seeds);
               args.tree_starts = pointer<const int32_t>(tree_starts);
               args.out_tokens = pointer<int32_t>(out_tokens);
               args.out_probs = pointer<float>(out_probs);
               args.num_rows = pointer<const int32_t>(num_rows);
               args.vocab_size = vocab_size;
               args.num_candidates = num_candidates;
               args.is_fresh = is_fresh;
               args.noise = std::make_shared<std::vector<float>>(is_fresh ? 0 : vocab_size);
               program.append(draft_topk, args);
             });
}

}  // namespace sdengine
