#include "cpu/sample.h"

namespace sdengine {
namespace {

constexpr int64_t kMinSlicedVocab =
    16384;  // below it three barriers cost more than a second core brings

struct Row {
  const float* logits;
  float* block_max;
  int32_t seq;
  NoiseKey key;
};

Row row_of(const SampleArgs& args, int64_t r) {
  const int32_t packed = args.rows == nullptr ? static_cast<int32_t>(r) : args.rows[r];
  const int32_t b = args.row_seq[packed];
  const NoiseKey key = {static_cast<uint64_t>(args.seeds[b]), args.positions[packed] + 1,
                        Purpose::kTarget, 0};
  return {args.logits + r * args.vocab_size,
          args.scratch->block_max.data() + r * num_vocab_blocks(args.vocab_size), b, key};
}

void sample_whole_row(const SampleArgs& args, int64_t r) {
  const Row row = row_of(args, r);
  const RowScan scan = vocab_passes().scan(row.logits, 0, args.vocab_size, row.block_max);
  const RowPlan plan =
      plan_row(row.logits, args.vocab_size, row.block_max, scan, args.tables, row.seq);
  args.out_tokens[r] =
      draw_from_plan(row.logits, 0, args.vocab_size, row.block_max, plan, row.key).token;
}

void plan_sliced_row(const SampleArgs& args, int64_t r, int num_slices) {
  const Row row = row_of(args, r);
  RowScan whole = args.scratch->scans[r * kMaxSlices];
  for (int s = 1; s < num_slices; ++s) {
    const RowScan& part = args.scratch->scans[r * kMaxSlices + s];
    whole.max = std::max(whole.max, part.max);
    whole.min = std::min(whole.min, part.min);
    whole.has_nan = whole.has_nan || part.has_nan;
  }
  args.scratch->plans[r] =
      plan_row(row.logits, args.vocab_size, row.block_max, whole, args.tables, row.seq);
}

void merge_sliced_row(const SampleArgs& args, int64_t r, int num_slices) {
  ScoredToken best = args.scratch->best[r * kMaxSlices];
  for (int s = 1; s < num_slices; ++s) {
    const ScoredToken& part = args.scratch->best[r * kMaxSlices + s];
    if (best.token < 0 || ranks_before(part.score, part.token, best.score, best.token)) best = part;
  }
  args.out_tokens[r] = best.token;
}

// Few rows: every worker takes its slice of each row.
void sample_sliced(const SampleArgs& args, Worker& worker, int64_t num_rows) {
  const int num_slices = std::min(worker.count, kMaxSlices);
  const bool works = worker.index < num_slices;
  const Worker slicer = {works ? worker.index : 0, num_slices, nullptr};
  const Range slice = works ? slicer.share(args.vocab_size, kVocabBlock) : Range{0, 0};
  const int64_t cell = worker.index;
  for (int64_t r = 0; works && r < num_rows; ++r) {
    const Row row = row_of(args, r);
    args.scratch->scans[r * kMaxSlices + cell] =
        vocab_passes().scan(row.logits, slice.begin, slice.end, row.block_max);
  }
  worker.barrier();
  for (int64_t r = worker.index; r < num_rows; r += worker.count)
    plan_sliced_row(args, r, num_slices);
  worker.barrier();
  for (int64_t r = 0; works && r < num_rows; ++r) {
    const Row row = row_of(args, r);
    args.scratch->best[r * kMaxSlices + cell] = draw_from_plan(
        row.logits, slice.begin, slice.end, row.block_max, args.scratch->plans[r], row.key);
  }
  worker.barrier();
  for (int64_t r = worker.index; r < num_rows; r += worker.count)
    merge_sliced_row(args, r, num_slices);
}

}  // namespace

std::shared_ptr<SampleScratch> make_sample_scratch(int64_t capacity, int64_t vocab_size) {
  auto scratch = std::make_shared<SampleScratch>();
  scratch->block_max.resize(capacity * num_vocab_blocks(vocab_size));
  scratch->plans.resize(kMaxSlices);
  scratch->scans.resize(kMaxSlices * kMaxSlices);
  scratch->best.resize(kMaxSlices * kMaxSlices);
  return scratch;
}

void sample(const SampleArgs& args, Worker& worker) {
  const int64_t num_rows = *args.num_rows;
  if (num_rows < worker.count && num_rows <= kMaxSlices && args.vocab_size >= kMinSlicedVocab) {
    sample_sliced(args, worker, num_rows);
    return;
  }
  const Range share = worker.share(num_rows);
  for (int64_t r = share.begin; r < share.end; ++r) sample_whole_row(args, r);
}

}  // namespace sdengine
