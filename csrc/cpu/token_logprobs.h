// token_logprobs: log-probabilities of the tokens that are about to be committed, and of the
// likeliest ones beside them.
#pragma once

#include "cpu/worker.h"

namespace sdengine {

struct TokenLogprobsArgs {
  const float* logits;              // [N, V]
  const int32_t* logit_starts;      // [B + 1]
  const int32_t* wants_logits;      // [B]
  const int32_t* num_accepted;      // [B]
  const int32_t* path;              // [B, D]
  const int32_t* tokens;            // [B, D + 1]
  const int32_t* history_lens;      // [B]
  const int32_t* num_alternatives;  // [B]; -1: none of its tokens
  const int32_t* num_seqs;          // [1]
  float* out_logprobs;              // [B, W]
  int32_t* out_ranks;               // [B, W]
  int32_t* out_best_tokens;         // [B, W, M]
  float* out_best_logprobs;         // [B, W, M]
  int64_t vocab_size;
  int64_t max_depth;         // D
  int64_t num_places;        // W
  int64_t max_alternatives;  // M
};

void token_logprobs(const TokenLogprobsArgs& args, Worker& worker);

}  // namespace sdengine
