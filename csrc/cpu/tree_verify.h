// tree_verify: walks every sequence's token tree.
#pragma once

#include "cpu/row_plan.h"
#include "cpu/worker.h"
#include "sdengine/tree_verify.h"

namespace sdengine {

struct TreeVerifyArgs {
  TokenTreeView tree;
  const int32_t* logit_starts;   // [B], logits row of the root
  const int32_t* wants_logits;   // [B]
  const int32_t* num_seqs;       // [1]
  const int32_t* target_tokens;  // [N], or nullptr: drawn here, for visited nodes only
  float* logits;  // [N, V]; a row is changed while its last token is drawn, and restored
  int64_t vocab_size;
  const int32_t* tree_starts;  // [B], root position + 1
  SamplingTables tables;
  const int64_t* seeds;    // [B]
  ProposalView proposals;  // rejection only
  bool is_rejection;
  int32_t* num_accepted;  // [B]
  int32_t* final_node;    // [B]
  WalkView walk;          // rows of all sequences: [B, D], [B, D + 1], [B, 32], [B, 32]
};

void tree_verify(const TreeVerifyArgs& args, Worker& worker);

}  // namespace sdengine
