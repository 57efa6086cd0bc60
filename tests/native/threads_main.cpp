// The worker pool and recorded programs under the thread sanitizer: barriers inside a launch,
// between launches and between replays in a row, pools shared by two callers, wake-ups, pools that
// end at once, and fewer workers while one of them makes no progress.
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <chrono>
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
    program.append(sum_twice, SumArgs{values.get(), 97, totals.get()});
    if (i == 0) program.begin_if(&always);
    if (i == 0) program.append(sum_twice, SumArgs{values.get(), 97, totals.get()});
    if (i == 0) program.end_if();
    program.end_if();
  }
  for (int round = 1; round <= 40; ++round) {
    if (round % 4 == 0) pool.prepare(20);
    program.replay(pool);
    const bool is_ordered = fuzz::plant() != fuzz::Plant::kMissingBarrier;
    const int num_active = pool.num_active();  // fewer than threads on a crowded machine
    for (int w = 0; is_ordered && w < num_active; ++w) {
      require(totals[w] == 3 * round * (97 * 96 / 2), "sum after the barrier");
    }
  }
  require(program.replay_timed(pool).size() == 4, "a time per launch");
}

// Every replay of a row is copied whole before the next one writes.
void check_replays_in_a_row(int threads) {
  constexpr int kReplays = 6;
  ThreadPool pool(threads);
  Exact<int64_t> values(97, 0), totals(threads, 0);
  Program program;
  program.append(sum_twice, SumArgs{values.get(), 97, totals.get()});
  Exact<int64_t> values_left(kReplays * 97, -1), totals_left(kReplays * threads, -1);
  const auto bytes = [](const auto& exact) { return reinterpret_cast<char*>(exact.get()); };
  ReplayCopies copies;
  copies.add(bytes(values), 97 * sizeof(int64_t), bytes(values_left));
  copies.add(bytes(totals), threads * sizeof(int64_t), bytes(totals_left));
  for (int round = 0; round < 20; ++round) {
    program.replay_in_a_row(pool, kReplays, copies);
    const bool is_ordered = fuzz::plant() != fuzz::Plant::kMissingBarrier;
    for (int i = 0; is_ordered && i < kReplays; ++i) {
      const int64_t replays = round * kReplays + i + 1;
      require(values_left[i * 97 + 96] == replays * 96, "what this replay wrote");
      for (int w = 0; w < pool.num_active(); ++w) {
        require(totals_left[i * threads + w] == replays * (97 * 96 / 2), "and what it summed up");
      }
    }
  }
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
    program.append(ngram_match,
                   NgramMatchArgs{history.get(), kText, lens.get(), nullptr, budgets.get(),
                                  limits.get(), stops.get(), nullptr, live.get(), 1, 2, 4, 8, 6, 3,
                                  draft.view, scratch.get()});
    program.append(
        tree_select,
        TreeSelectArgs{draft.view, thresholds.get(), static_cast<int32_t>(thresholds.size()),
                       pending.get(), live.get(), nullptr, kBatch, tree.view, nullptr, keys.get(),
                       keys.get() + kBatch * kNodes, maps.get(), maps.get() + kNodes + 1,
                       maps.get() + 2 * (kNodes + 1)});
    program.append(build_rows, BuildRowsArgs{tokens.get(),
                                             pending.get(),
                                             computed.get(),
                                             wants.get(),
                                             live.get(),
                                             {tables.get(), 4, 64},
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

constexpr int64_t kMs = 1'000'000;

// Runs of `wall` nanoseconds that lose `lost`; returns when the last one ended.
int64_t observe(WorkerCount& workers, int num_runs, int64_t wall, int64_t lost, int64_t now) {
  for (int i = 0; i < num_runs; ++i) {
    workers.next(now);
    workers.observe(wall, lost, now += wall);
  }
  return now;
}

void check_worker_count() {
  WorkerCount workers(4);
  int64_t now = observe(workers, 3, 5 * kMs, 4 * kMs, 0);
  require(workers.current() == 4, "a few lost time slices are no crowd, at the start");
  now = observe(workers, 200, kMs / 2, 0, now);
  for (int i = 0; i < 20; ++i) {
    now = observe(workers, 1, 4 * kMs, 3 * kMs, now);
    now = observe(workers, 10, kMs / 2, 0, now);
  }
  require(workers.current() == 4, "losing a third now and then costs less than half the workers");
  now = observe(workers, 100, 50 * kMs, 0, now);
  now = observe(workers, 1, 150 * kMs, 120 * kMs, now);
  require(workers.current() == 4, "one long run is no crowd");
  now = observe(workers, 20, 100 * kMs, 40 * kMs, now);
  require(workers.current() == 4, "nor does losing two fifths of every long run");
  for (int i = 0; i < 30 && workers.current() > 1; ++i)
    now = observe(workers, 1, 150 * kMs, 120 * kMs, now);
  require(workers.current() == 1, "a crowd, also in a model of long runs");
  require(workers.next(now + kMs) == 1, "not tried again at once");
  now += 6000 * kMs;
  require(workers.next(now) == 2, "two of four are tried first");
  workers.observe(5 * kMs, 4 * kMs, now += 5 * kMs);
  require(workers.current() == 2, "one lost time slice does not end a trial");
  now = observe(workers, 100, 5 * kMs, 0, now);
  now += 6000 * kMs;
  now = observe(workers, 100, 5 * kMs, 0, now);
  require(workers.current() == 4, "all of them again");
}

// Milliseconds that pass after a crowd of one long run until more workers are tried.
int64_t pause_of(WorkerCount& workers, int64_t& now) {
  while (workers.current() > 1) now = observe(workers, 1, 100 * kMs, 1000 * kMs, now);
  const int64_t start = now;
  // Nobody is waited for meanwhile, whatever the barrier still knows of the run before.
  while (workers.next(now) == 1) workers.observe(kMs, kMs, now += kMs);
  return (now - start) / kMs;
}

void check_pauses() {
  WorkerCount workers(2);
  int64_t now = 0;
  require(pause_of(workers, now) == 100, "as long as was lost, and no more than the run took");
  for (int64_t expected : {200, 400, 800, 1600, 3200, 3200}) {
    require(pause_of(workers, now) == expected, "twice as long after each trial that fails");
  }
  now = observe(workers, 1000, 5 * kMs, 0, now);
  require(workers.current() == 2, "a trial that goes well");
  require(pause_of(workers, now) < 300, "the next crowd is a new one");
}

void check_three_workers() {
  WorkerCount workers(3);
  int64_t now = 0;
  while (workers.current() == 3) now = observe(workers, 1, 100 * kMs, 100 * kMs, now);
  require(workers.current() == 2, "half of three are two");
  now = observe(workers, 10, kMs, 0, now + 6000 * kMs);
  require(workers.current() == 3, "twice as many are tried again, but no more than there are");
}

// A late worker is waited for by all the others, and what is lost by it belongs to that run.
void check_lost_waits() {
  using Clock = std::chrono::steady_clock;
  Barrier barrier;
  for (int i = 0; i < 100 && barrier.lost_ns() == 0; ++i) {  // on a crowded machine all are late
    barrier.open(3);
    const auto start = Clock::now();
    std::vector<std::thread> early;
    for (int j = 0; j < 2; ++j) early.emplace_back([&barrier] { barrier.wait(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    barrier.wait();
    for (std::thread& thread : early) thread.join();
    const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
    require(barrier.lost_ns() <= took.count(), "a wait counts once, whoever waits");
  }
  require(barrier.lost_ns() > 0, "a late worker is noticed");
  barrier.open(3);
  require(barrier.lost_ns() == 0, "nothing is lost yet in the next run");
}

struct StallArgs {
  const bool* is_crowded;
  int64_t* runs;  // one per worker
};

void stall(const StallArgs& args, Worker& worker) {
  ++args.runs[worker.index];
  if (*args.is_crowded && worker.index == worker.count - 1 && worker.count > 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void check_crowded_pool() {
  ThreadPool pool(4);
  bool is_crowded = true;
  Exact<int64_t> runs(4, 0);
  Program program;
  program.append(stall, StallArgs{&is_crowded, runs.get()});
  int64_t num_replays = 0;
  const auto replay = [&] {
    program.replay(pool);
    require(runs[0] == ++num_replays, "worker 0 takes part in every run");
  };
  for (int i = 0; i < 200 && pool.num_active() > 1; ++i) replay();
  require(pool.num_active() == 1, "a stalled worker is left out");
  is_crowded = false;
  for (int i = 0; i < 10'000 && pool.num_active() < 4; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    replay();
  }
  require(pool.num_active() == 4, "all workers come back");
}

// Two workers on one core take turns at every barrier, and no wait is long: one is left out.
void check_shared_core() {
  cpu_set_t all, one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  require(sched_getaffinity(0, sizeof(all), &all) == 0, "the cores of this thread");
  require(sched_setaffinity(0, sizeof(one), &one) == 0, "one core, which the pool inherits");
  {
    ThreadPool pool(2);
    const auto meet = [](Worker& worker) {
      for (int i = 0; i < 10; ++i) worker.barrier();
    };
    for (int i = 0; i < 20'000 && pool.num_active() > 1; ++i) pool.run(meet);
    require(pool.num_active() == 1, "who shares a core is left out");
  }
  sched_setaffinity(0, sizeof(all), &all);
}

int64_t processor_us(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1'000'000 + time.tv_nsec / 1000;
}

// A worker that is left out, because others need the cores, must not take one to spin for its turn.
void check_those_left_out_sleep() {
  constexpr int kRuns = 40;
  ThreadPool pool(4);
  clockid_t clocks[4];
  const auto spin = [&](Worker& worker) {
    pthread_getcpuclockid(pthread_self(), &clocks[worker.index]);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    while (std::chrono::steady_clock::now() < end) {
    }
  };
  pool.run_on(4, spin);  // after which all spin for the next run
  pool.run_on(2, spin);
  const int64_t before = processor_us(clocks[3]);
  for (int i = 0; i < kRuns; ++i) pool.run_on(2, spin);
  const int64_t took = processor_us(clocks[3]) - before;
  require(took < kRuns * 100, "who is left out sleeps");  // and else spins for 250 us a run
}

}  // namespace

int main() {
  check_worker_count();
  check_pauses();
  check_three_workers();
  check_lost_waits();
  check_crowded_pool();
  check_shared_core();
  check_those_left_out_sleep();
  for (int threads : {1, 2, 3, 5}) check_barriers(threads);
  for (int threads : {1, 2, 4}) check_replays_in_a_row(threads);
  check_two_callers();
  check_short_lives();
  std::printf("threads: ok\n");
  return 0;
}
