// sample: one token per row, by Gumbel noise keyed by (seed, position of the token), over the
// allowed set.
#pragma once

#include <memory>
#include <vector>

#include "cpu/row_plan.h"
#include "cpu/worker.h"

namespace sdengine {

constexpr int kMaxSlices = 16;  // workers that share one row when rows are few

// Working memory of a launch, made when it is recorded.
struct SampleScratch {
  std::vector<float> block_max;   // [N, blocks]
  std::vector<RowPlan> plans;     // [kMaxSlices]
  std::vector<RowScan> scans;     // [kMaxSlices rows, kMaxSlices]
  std::vector<ScoredToken> best;  // [kMaxSlices rows, kMaxSlices]
};

struct SampleArgs {
  const float* logits;       // [N, V]
  const int32_t* rows;       // [N] packed row of each logits row, or nullptr: the same row
  const int32_t* row_seq;    // by packed row
  const int32_t* positions;  // by packed row
  SamplingTablesView tables;
  const int64_t* seeds;     // [B]
  int32_t* out_tokens;      // [N]
  const int32_t* num_rows;  // [1]
  int64_t vocab_size;
  std::shared_ptr<SampleScratch> scratch;
};

// `capacity` is N.
std::shared_ptr<SampleScratch> make_sample_scratch(int64_t capacity, int64_t vocab_size);

void sample(const SampleArgs& args, Worker& worker);

}  // namespace sdengine
