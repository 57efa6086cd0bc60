#include "cpu/bind.h"
#include "cpu/token_logprobs.h"

namespace sdengine {

void bind_token_logprobs(pybind11::module_& module) {
  module.def(
      "token_logprobs",
      [](Program& program, uintptr_t logits, uintptr_t logit_starts, uintptr_t wants_logits,
         uintptr_t num_accepted, uintptr_t path, uintptr_t tokens, uintptr_t history_lens,
         uintptr_t num_alternatives, uintptr_t num_seqs, uintptr_t out_logprobs,
         uintptr_t out_ranks, uintptr_t out_best_tokens, uintptr_t out_best_logprobs,
         int64_t vocab_size, int64_t max_depth, int64_t num_places, int64_t max_alternatives) {
        program.append(
            token_logprobs,
            TokenLogprobsArgs{pointer<const float>(logits), pointer<const int32_t>(logit_starts),
                              pointer<const int32_t>(wants_logits),
                              pointer<const int32_t>(num_accepted), pointer<const int32_t>(path),
                              pointer<const int32_t>(tokens), pointer<const int32_t>(history_lens),
                              pointer<const int32_t>(num_alternatives),
                              pointer<const int32_t>(num_seqs), pointer<float>(out_logprobs),
                              pointer<int32_t>(out_ranks), pointer<int32_t>(out_best_tokens),
                              pointer<float>(out_best_logprobs), vocab_size, max_depth, num_places,
                              max_alternatives});
      });
}

}  // namespace sdengine
