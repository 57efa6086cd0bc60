#include "cpu/filter_logits.h"

#include <limits>
#include <vector>

namespace sdengine {
namespace {

bool has_filters(const SamplingTablesView& tables, int32_t b, int64_t vocab_size) {
  const bool has_top_k = tables.top_k[b] >= 1 && tables.top_k[b] < vocab_size;
  return has_top_k || tables.top_p[b] < 1.0f || tables.min_p[b] > 0.0f;
}

void filter_row(const FilterLogitsArgs& args, int64_t r) {
  const int32_t b = args.row_seq[args.rows == nullptr ? r : args.rows[r]];
  if (!has_filters(args.tables, b, args.vocab_size)) return;
  thread_local std::vector<float> block_max;
  block_max.resize(num_vocab_blocks(args.vocab_size));
  float* logits = args.logits + r * args.vocab_size;
  const RowScan scan = vocab_passes().scan(logits, 0, args.vocab_size, block_max.data());
  const RowPlan plan = plan_row(logits, args.vocab_size, block_max.data(), scan, args.tables, b);
  if (plan.is_greedy) return;
  for (int64_t i = 0; i < args.vocab_size; ++i) {
    logits[i] = logits[i] >= plan.threshold ? logits[i] : -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

void filter_logits(const FilterLogitsArgs& args, Worker& worker) {
  const Range rows = worker.share(*args.num_rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) filter_row(args, r);
}

}  // namespace sdengine
