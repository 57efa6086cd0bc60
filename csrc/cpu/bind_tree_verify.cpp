#include "cpu/bind.h"
#include "cpu/tree_verify.h"
#include "cpu/tree_views.h"

namespace sdengine {

void bind_tree_verify(pybind11::module_& module) {
  module.def(
      "tree_verify",
      [](Program& program, bool is_rejection, const Addresses& tree, int32_t max_nodes,
         int32_t mask_words, uintptr_t logit_starts, uintptr_t wants_logits, uintptr_t num_seqs,
         uintptr_t target_tokens, uintptr_t logits, int64_t vocab_size, uintptr_t tree_starts,
         uintptr_t temperature, uintptr_t top_k, uintptr_t top_p, uintptr_t min_p, uintptr_t seeds,
         uintptr_t proposal_tokens, uintptr_t proposal_probs, int32_t num_candidates,
         uintptr_t num_accepted, uintptr_t final_node, uintptr_t path, uintptr_t out_tokens,
         int32_t max_depth, uintptr_t tried, uintptr_t accepted) {
        TreeVerifyArgs args{};
        args.is_rejection = is_rejection;
        args.tree = token_tree_view(tree, max_nodes, mask_words);
        args.logit_starts = pointer<const int32_t>(logit_starts);
        args.wants_logits = pointer<const int32_t>(wants_logits);
        args.num_seqs = pointer<const int32_t>(num_seqs);
        args.target_tokens = pointer<const int32_t>(target_tokens);
        args.logits = pointer<float>(logits);
        args.vocab_size = vocab_size;
        args.tree_starts = pointer<const int32_t>(tree_starts);
        args.tables = {pointer<const float>(temperature), pointer<const int32_t>(top_k),
                       pointer<const float>(top_p), pointer<const float>(min_p)};
        args.seeds = pointer<const int64_t>(seeds);
        args.proposals = {pointer<const int32_t>(proposal_tokens),
                          pointer<const float>(proposal_probs), num_candidates};
        args.num_accepted = pointer<int32_t>(num_accepted);
        args.final_node = pointer<int32_t>(final_node);
        args.walk = {pointer<int32_t>(path), pointer<int32_t>(out_tokens), max_depth,
                     pointer<int32_t>(tried), pointer<int32_t>(accepted)};
        program.append("tree_verify", tree_verify, args);
      });
}

}  // namespace sdengine
