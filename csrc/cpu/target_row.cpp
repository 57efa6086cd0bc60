#include "cpu/target_row.h"

#include <limits>

namespace sdengine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

std::vector<float>& block_memory(int64_t vocab_size) {
  thread_local std::vector<float> block_max;
  if (static_cast<int64_t>(block_max.size()) < num_vocab_blocks(vocab_size)) {
    block_max.resize(num_vocab_blocks(vocab_size));
  }
  return block_max;
}

}  // namespace

TargetRow::TargetRow(float* logits, int64_t vocab_size, const SamplingTablesView& tables,
                     int32_t seq)
    : root_row_(logits),
      vocab_size_(vocab_size),
      tables_(tables),
      seq_(seq),
      block_max_(block_memory(vocab_size)) {}

bool TargetRow::load(int32_t node) {
  row_ = root_row_ + node * vocab_size_;
  total_ = 0.0;
  const RowScan scan = vocab_passes().scan(row_, 0, vocab_size_, block_max_.data());
  plan_ = plan_row(row_, vocab_size_, block_max_.data(), scan, tables_, seq_);
  return plan_.argmax >= 0;
}

int32_t TargetRow::sample(const NoiseKey& key) const {
  return draw_from_plan(row_, 0, vocab_size_, block_max_.data(), plan_, key).token;
}

double TargetRow::probability(int32_t token) {
  if (!(row_[token] >= plan_.threshold)) return 0.0;
  if (total_ == 0.0) {
    const uint64_t mass = vocab_passes().mass(row_, 0, vocab_size_, plan_.scale, plan_.threshold);
    total_ = static_cast<double>(mass) * kMassUnit;
  }
  const float scaled =
      perturbed_score(row_[token], plan_.scale.max, plan_.scale.inverse_temperature, 0.0f);
  return static_cast<double>(scalar::stable_exp({scaled}).v) / total_;
}

// Takes the support and the struck tokens out of the row while it is raced.
ScoredToken TargetRow::race_outside_support(const NodeLaw& law, const Residual& residual,
                                            const NoiseKey& key) {
  float support_logits[kMaxSupport];
  float struck_logits[kMaxStruck];
  for (int32_t i = 0; i < law.count; ++i) {
    support_logits[i] = row_[law.tokens[i]];
    row_[law.tokens[i]] = kMinusInfinity;
  }
  for (int32_t i = 0; i < residual.num_struck; ++i) {
    struck_logits[i] = row_[residual.struck[i]];
    row_[residual.struck[i]] = kMinusInfinity;
  }
  const ScoredToken best = vocab_passes().race(row_, 0, vocab_size_, block_max_.data(), plan_.scale,
                                               plan_.threshold, key, kMinusInfinity);
  for (int32_t i = residual.num_struck - 1; i >= 0; --i)
    row_[residual.struck[i]] = struck_logits[i];
  for (int32_t i = law.count - 1; i >= 0; --i) row_[law.tokens[i]] = support_logits[i];
  return best;
}

int32_t TargetRow::draw(const NodeLaw& law, const Residual& residual, const NoiseKey& key) {
  const bool is_whole = residual.num_rejected == 0 && residual.num_struck == 0;
  if (is_whole || residual.is_collapsed) return sample(key);
  ScoredToken best = race_outside_support(law, residual, key);
  for (int32_t i = 0; i < law.count; ++i) {
    const int32_t token = law.tokens[i];
    const double weight = is_struck(residual, token) ? 0.0 : support_weight(law, residual, i);
    const float kept = weight > 0.0 ? static_cast<float>(weight / law.target_probs[i]) : 0.0f;
    if (kept < 1e-30f) continue;
    const float score = perturbed_score(row_[token], plan_.scale.max,
                                        plan_.scale.inverse_temperature, gumbel(key, token)) +
                        scalar::stable_log({kept}).v;
    if (best.token < 0 || ranks_before(score, token, best.score, best.token)) best = {score, token};
  }
  return best.token;
}

}  // namespace sdengine
