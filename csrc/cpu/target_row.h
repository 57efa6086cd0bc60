// The target's law at one node of a tree: a row of logits under its sequence's sampling parameters.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/row_plan.h"
#include "sdengine/residual.h"

namespace sdengine {

// Rows of one sequence, looked at one at a time and only when the walk gets there.
class TargetRow {
 public:
  // `logits` is the root's row; the rows of the tree's nodes follow. Rows are restored when draw()
  // returns.
  TargetRow(float* logits, int64_t vocab_size, const SamplingTablesView& tables, int32_t seq);

  // Plans the node's row; false when nothing can be drawn from it.
  bool load(int32_t node);

  // Token of the loaded row by the noise of the key: what `sample` draws.
  int32_t sample(const NoiseKey& key) const;

  // Target probability of a token under the loaded row.
  double probability(int32_t token);

  // A token from what the residual leaves of the loaded row.
  int32_t draw(const NodeLaw& law, const Residual& residual, const NoiseKey& key);

 private:
  ScoredToken race_outside_support(const NodeLaw& law, const Residual& residual,
                                   const NoiseKey& key);

  float* root_row_;
  int64_t vocab_size_;
  SamplingTablesView tables_;
  int32_t seq_;
  float* row_ = nullptr;
  std::vector<float>& block_max_;
  RowPlan plan_{};
  double total_ = 0.0;  // mass of the allowed tokens; 0: not summed yet
};

}  // namespace sdengine
