// A pool of workers that run one function together and sleep in between.
//
// Inside a run, workers meet at spinning barriers (a layer of a small model takes tens of
// microseconds; a futex round trip costs 5-50 on a virtual machine). After a run they spin for
// half of its time, at most 250 us, then sleep.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/worker.h"
#include "cpu/worker_count.h"

namespace sdengine {

// Generation barrier. Spins briefly, then yields, so that more threads than cores still make
// progress.
class Barrier {
 public:
  // For a run of so many workers; nobody may be waiting.
  void open(int count);
  void wait();

  // Nanoseconds, since `open`, that the first worker at a barrier waited for the last one; only
  // waits that are too long for an uneven share of the work.
  int64_t lost_ns() const { return lost_ns_.load(std::memory_order_relaxed); }

 private:
  int count_ = 0;
  std::atomic<int64_t> lost_ns_{0};
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

class ThreadPool {
 public:
  // `num_threads` counts the calling thread; it must be at least 1. Throws std::system_error when
  // the system gives no more threads.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Workers of the newest run.
  int num_active() const { return num_active_.load(std::memory_order_relaxed); }

  // Calls body(worker) on every worker, the calling thread being worker 0; returns when all are
  // done. While other processes use the cores there are fewer workers than threads. Not reentrant;
  // one run at a time (guarded by a mutex, so two engines may share a pool). `body` must not throw.
  // Throws std::runtime_error in a process that was forked from the pool's.
  void run(const std::function<void(Worker&)>& body);

  // As run, with so many workers whatever else the machine does: to measure it.
  void run_on(int count, const std::function<void(Worker&)>& body);

  // Wakes sleeping workers without giving them work: they spin for at most `max_wait_us` for the
  // run that is about to come.
  void prepare(int max_wait_us);

 private:
  void worker_main(int index);
  void stop();  // ends and joins the threads
  bool is_forked() const;
  void require_own_process() const;
  void run_with(int count, const std::function<void(Worker&)>& body);
  // Nanoseconds of a run of so many workers that were lost to others on their cores.
  int64_t lost_ns(int count, int64_t wall_ns) const;

  const int num_threads_;
  const pid_t process_;
  WorkerCount worker_count_;  // guarded by run_mutex_
  std::atomic<int> num_active_;
  Barrier barrier_;
  std::vector<std::thread> threads_;
  std::vector<int> cores_;  // on which each worker of the newest run ended it
  std::mutex run_mutex_;
  std::mutex sleep_mutex_;
  std::unique_ptr<std::condition_variable> wake_;
  const std::function<void(Worker&)>* body_ = nullptr;
  // Number of the run and of its workers, in one word: who is not among them must not touch the
  // rest, which may belong to the next run by then.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> active_{0};
  alignas(64) std::atomic<uint32_t> prepare_ticket_{0};
  std::atomic<int> prepare_us_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace sdengine
