#include "cpu/thread_pool.h"

#if defined(__SSE__)
#include <immintrin.h>
#endif
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <chrono>
#include <stdexcept>
#include <string>

namespace sdengine {
namespace {

constexpr int kSpinsBeforeYield =
    100;  // a few us. With 4000 two workers sharing a busy core took 140 us a barrier
// After a run a worker expects the next one soon: the host needs 40 to 200 us between two steps of
// a small model, whose weights have just driven its own code out of the caches. Waking a sleeping
// thread costs the waker 20 us on a virtual machine, and its core starts slowly. So it spins for
// half of what the run took, 5 to 250 us, then sleeps. With a quarter and 50 us a token of the
// bundled pair took 1.1 to 1.5 times as long. An idle engine burns nothing, and a busy one at most
// a third of one core.
constexpr int kShortestSpinUs = 5;
constexpr int kLongestSpinUs = 250;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `is_over` came true within a few microseconds.
template <typename Condition>
bool spin_for(const Condition& is_over) {
  for (int spins = 0; spins < kSpinsBeforeYield; ++spins) {
    if (is_over()) return true;
    pause();
  }
  return false;
}

template <typename Condition>
void yield_until(const Condition& is_over) {
  while (!is_over()) std::this_thread::yield();
}

// A wait of this length is no uneven share of a layer: a scheduler's time slice is some 3 ms.
constexpr int64_t kLostWaitNs = 500'000;

constexpr int kCountBits = 16;  // of a ticket

int workers_of(uint64_t ticket) { return static_cast<int>(ticket & ((1 << kCountBits) - 1)); }

using Clock = std::chrono::steady_clock;

// A worker's body under the floating-point modes of a new thread, whatever its own thread has set:
// workers that flush subnormal numbers beside others that keep them would make a result depend on
// their number. An exception ends the process: the others would wait for this worker for ever.
void run_body(const std::function<void(Worker&)>& body, Worker& worker) noexcept {
#if defined(__SSE__)
  constexpr unsigned kDefaultModes = 0x1f80;  // round to nearest, no trap, nothing flushed
  const unsigned modes = _mm_getcsr();
  _mm_setcsr(kDefaultModes);
  body(worker);
  _mm_setcsr(modes);
#else
  body(worker);
#endif
}

// Where the calling thread runs, some 10 ns; elsewhere than on Linux every worker has its own.
int core_of(const Worker& worker) {
#if defined(__linux__)
  return sched_getcpu();
#else
  return worker.index;
#endif
}

int64_t now_ns() {
  const auto now = Clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

}  // namespace

void Worker::barrier() const {
  if (count > 1) gate->wait();
}

void Barrier::open(int count) {
  count_ = count;
  waiting_.store(count, std::memory_order_relaxed);
  lost_ns_.store(0, std::memory_order_relaxed);
}

void Barrier::wait() {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  const int num_missing = waiting_.fetch_sub(1, std::memory_order_acq_rel);
  if (num_missing == 1) {
    waiting_.store(count_, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  const auto has_opened = [&] { return generation_.load(std::memory_order_acquire) != generation; };
  if (spin_for(has_opened)) return;
  const int64_t start = now_ns();
  yield_until(has_opened);
  if (num_missing != count_) return;  // not the first one here
  const int64_t waited = now_ns() - start;
  if (waited > kLostWaitNs) lost_ns_.fetch_add(waited, std::memory_order_relaxed);
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads),
      process_(getpid()),
      worker_count_(num_threads),
      num_active_(num_threads),
      cores_(std::max(num_threads, 1)),
      wake_(std::make_unique<std::condition_variable>()) {
  if (num_threads < 1 || num_threads >> kCountBits != 0) {
    throw std::invalid_argument("ThreadPool: num_threads must be from 1 to 65535, got " +
                                std::to_string(num_threads));
  }
  threads_.reserve(num_threads - 1);
  try {
    for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { worker_main(i); });
  } catch (...) {  // the system has no more threads; those that run must end before their pool
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  if (is_forked()) {  // no thread came along: whatever waits for one, or ends one, is left alone
    new std::vector<std::thread>(std::move(threads_));
    wake_.release();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stopping_.store(true);
  }
  wake_->notify_all();
  for (auto& thread : threads_) thread.join();
}

bool ThreadPool::is_forked() const { return getpid() != process_; }

void ThreadPool::require_own_process() const {
  if (!is_forked()) return;
  throw std::runtime_error(
      "ThreadPool: expected the process that made it, got a forked one, which has none of its "
      "threads; make a new pool after the fork");
}

void ThreadPool::run(const std::function<void(Worker&)>& body) {
  require_own_process();  // before the lock, which a thread that is not here may hold
  std::lock_guard<std::mutex> guard(run_mutex_);
  const int64_t start = now_ns();
  const int count = worker_count_.next(start);
  run_with(count, body);
  const int64_t end = now_ns();
  worker_count_.observe(end - start, lost_ns(count, end - start), end);
  num_active_.store(count, std::memory_order_relaxed);
}

void ThreadPool::run_on(int count, const std::function<void(Worker&)>& body) {
  require_own_process();
  std::lock_guard<std::mutex> guard(run_mutex_);
  run_with(std::min(count, num_threads_), body);
}

void ThreadPool::run_with(int count, const std::function<void(Worker&)>& body) {
  Worker self{0, count, &barrier_};
  if (count == 1) {
    run_body(body, self);
    return;
  }
  active_.store(count - 1, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    barrier_.open(count);
    body_ = &body;
    const uint64_t number = ticket_.load(std::memory_order_relaxed) >> kCountBits;
    ticket_.store((number + 1) << kCountBits | count, std::memory_order_release);
  }
  wake_->notify_all();
  run_body(body, self);
  cores_[0] = core_of(self);
  const auto have_ended = [this] { return active_.load(std::memory_order_acquire) == 0; };
  if (!spin_for(have_ended)) yield_until(have_ended);
}

// A neighbour that sleeps now and then keeps a core for itself, and two workers meet on the other:
// they take turns at every barrier, 7 us each, in which no wait is long. On half as many cores as
// there are workers, or fewer, half of them would have been as fast.
int64_t ThreadPool::lost_ns(int count, int64_t wall_ns) const {
  std::bitset<1024> cores;
  for (int i = 0; i < count; ++i) cores.set(static_cast<size_t>(cores_[i]) % cores.size());
  return 2 * static_cast<int>(cores.count()) <= count ? wall_ns : barrier_.lost_ns();
}

void ThreadPool::prepare(int max_wait_us) {
  // A forked process has no thread to wake, and one that is not here may hold the lock.
  if (num_active_.load(std::memory_order_relaxed) == 1 || is_forked()) return;
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    prepare_us_.store(max_wait_us, std::memory_order_relaxed);
    prepare_ticket_.fetch_add(1, std::memory_order_release);
  }
  wake_->notify_all();
}

void ThreadPool::worker_main(int index) {
  uint64_t seen = 0;
  uint32_t seen_prepare = 0;
  int spin_us = kShortestSpinUs;
  for (;;) {
    const auto deadline = Clock::now() + std::chrono::microseconds(spin_us);
    while (ticket_.load(std::memory_order_acquire) == seen && Clock::now() < deadline) pause();
    if (ticket_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      wake_->wait(lock, [&] {
        const uint64_t newest = ticket_.load();
        if (index >= workers_of(newest)) seen = newest;  // a run without this one
        return stopping_.load() || newest != seen || prepare_ticket_.load() != seen_prepare;
      });
      if (stopping_.load()) return;
    }
    seen_prepare = prepare_ticket_.load(std::memory_order_acquire);
    if (ticket_.load(std::memory_order_acquire) == seen) {
      const bool is_active = index < num_active_.load(std::memory_order_relaxed);
      spin_us = is_active ? prepare_us_.load(std::memory_order_relaxed) : 0;
      continue;
    }
    seen = ticket_.load(std::memory_order_acquire);
    const int count = workers_of(seen);
    if (index >= count) {  // others need this core: sleep on
      spin_us = 0;
      continue;
    }
    const auto start = Clock::now();
    Worker self{index, count, &barrier_};
    run_body(*body_, self);
    cores_[index] = core_of(self);
    active_.fetch_sub(1, std::memory_order_acq_rel);
    const auto took_us =
        std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
    spin_us = static_cast<int>(std::clamp<int64_t>(took_us / 2, kShortestSpinUs, kLongestSpinUs));
  }
}

}  // namespace sdengine
