// The worker pool and recorded programs under the thread sanitizer: barriers inside a launch and
// between launches, pools shared by two callers, wake-ups, pools that end at once.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu/build_rows.h"
#include "cpu/ngram_match.h"
#include "cpu/program.h"
#include "cpu/tree_select.h"
#include "tree_buffers.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::require;

struct SumArgs {
  int64_t* values;
  int64_t count;
  int64_t* totals;  // one per worker
};

// Writes a share, then sums everything: only the barrier orders the two.
void sum_twice(const SumArgs& args, Worker& worker) {
  const Range range = worker.share(args.count);
  for (int64_t i = range.begin; i < range.end; ++i) args.values[i] += i;
  if (fuzz::plant() != fuzz::Plant::kMissingBarrier) worker.barrier();
  int64_t total = 0;
  for (int64_t i = 0; i < args.count; ++i) total += args.values[i];
  args.totals[worker.index] = total;
}

void check_barriers(int threads) {
  ThreadPool pool(threads);
  Exact<int64_t> values(97, 0), totals(threads, 0);
  Program program;
  const int32_t never = 0, always = 1;
  for (int i = 0; i < 3; ++i) {
    program.begin_if(i < 2 ? &always : &never);
    program.append("sum_twice", sum_twice, SumArgs{values.get(), 97, totals.get()});
    if (i == 0) program.begin_if(&always);
    if (i == 0) program.append("sum_twice", sum_twice, SumArgs{values.get(), 97, totals.get()});
    if (i == 0) program.end_if();
    program.end_if();
  }
  for (int round = 1; round <= 40; ++round) {
    if (round % 4 == 0) pool.prepare(20);
    program.replay(pool);
    const bool is_ordered = fuzz::plant() != fuzz::Plant::kMissingBarrier;
    for (int w = 0; is_ordered && w < threads; ++w) {
      require(totals[w] == 3 * round * (97 * 96 / 2), "sum after the barrier");
    }
  }
  require(program.replay_timed(pool).size() == 4, "a time per launch");
}

// n-grams on all workers, then selection and rows on one: data crosses workers only between
// launches.
struct Draft {
  static constexpr int32_t kBatch = 5, kNodes = 12, kText = 200;
  Draft()
      : history(kBatch * kText),
        lens(kBatch, kText),
        budgets(kBatch, kNodes),
        limits(kBatch, 6),
        stops(kBatch, -1),
        live(1, kBatch),
        pending(kBatch + 1),
        computed(kBatch, kText - 1),
        wants(kBatch, 1),
        tables(kBatch * 4, 0),
        tokens(kBatch, 1),
        logit_rows(kBatch * (kNodes + 1)),
        cu_logits(kBatch + 1),
        num_logits(1),
        scratch(kBatch * ngram_scratch_words(8, 6)),
        keys(2 * kBatch * kNodes),
        maps(3 * (kNodes + 1)),
        thresholds(kBatch * (kNodes + 1), 0.01f),
        draft(kBatch, kNodes),
        tree(kBatch, kNodes),
        rows(kBatch, kBatch * (kNodes + 1), 1) {
    for (size_t i = 0; i < history.size(); ++i) history[i] = static_cast<int32_t>(i * i % 7);
    for (int32_t b = 0; b <= kBatch; ++b) pending[b] = b;
  }

  void record(Program& program) {
    program.append("ngram_match", ngram_match,
                   NgramMatchArgs{history.get(), kText, nullptr, lens.get(), budgets.get(),
                                  limits.get(), stops.get(), nullptr, live.get(), 1, 2, 4, 8, 6, 3,
                                  draft.view, scratch.get()});
    program.append(
        "tree_select", tree_select,
        TreeSelectArgs{draft.view, thresholds.get(), static_cast<int32_t>(thresholds.size()),
                       pending.get(), live.get(), kBatch, tree.view, keys.get(),
                       keys.get() + kBatch * kNodes, maps.get(), maps.get() + kNodes + 1,
                       maps.get() + 2 * (kNodes + 1)});
    program.append("build_rows", build_rows,
                   BuildRowsArgs{tokens.get(),
                                 pending.get(),
                                 computed.get(),
                                 wants.get(),
                                 live.get(),
                                 {tables.get(), 4, 64},
                                 0,
                                 true,
                                 tree.view,
                                 rows.view,
                                 logit_rows.get(),
                                 cu_logits.get(),
                                 num_logits.get()});
  }

  Exact<int32_t> history, lens, budgets, limits, stops, live, pending, computed, wants, tables,
      tokens, logit_rows, cu_logits, num_logits;
  Exact<int64_t> scratch;
  Exact<uint64_t> keys;
  Exact<int32_t> maps;
  Exact<float> thresholds;
  fuzz::DraftTreeBuffers draft;
  fuzz::TokenTreeBuffers tree;
  fuzz::RowBatchBuffers rows;
};

// Two engines in one process share a pool.
void check_two_callers() {
  ThreadPool pool(3);
  Draft drafts[2];
  std::vector<std::thread> callers;
  for (Draft& draft : drafts) {
    callers.emplace_back([&pool, &draft] {
      Program program;
      draft.record(program);
      for (int round = 0; round < 30; ++round) program.replay(pool);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Draft& draft : drafts) {
    require(*draft.rows.view.num_rows > Draft::kBatch, "trees were drafted");
    for (int32_t b = 0; b < Draft::kBatch; ++b)
      fuzz::require_token_structure(draft.tree.view.sequence(b));
  }
}

void check_short_lives() {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool idle(threads);
    ThreadPool prepared(threads);
    prepared.prepare(50);
  }
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 5}) check_barriers(threads);
  check_two_callers();
  check_short_lives();
  std::printf("threads: ok\n");
  return 0;
}
