// draft_topk: the K best tokens of each row of draft logits, with their probabilities.
#pragma once

#include <memory>
#include <vector>

#include "cpu/row_plan.h"
#include "cpu/worker.h"

namespace sdengine {

constexpr int kMaxCandidates = 64;

struct DraftTopkArgs {
  const float* logits;         // [N, V]
  const int32_t* rows;         // [N] packed row of each logits row, or nullptr: the same row
  const int32_t* row_seq;      // by packed row
  const int32_t* positions;    // by packed row
  const int32_t* node_slots;   // by packed row; fresh noise only
  const float* temperature;    // [B]
  const int64_t* seeds;        // [B]
  const int32_t* tree_starts;  // [B], root position + 1; fresh noise only
  int32_t* out_tokens;         // [N, K]
  float* out_probs;            // [N, K]
  const int32_t* num_rows;     // [1]
  int64_t vocab_size;
  int32_t num_candidates;  // K
  bool is_fresh;
  std::shared_ptr<std::vector<float>> noise;  // [V], of rows that share theirs; working memory
};

void draft_topk(const DraftTopkArgs& args, Worker& worker);

}  // namespace sdengine
