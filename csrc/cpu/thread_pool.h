// A pool of workers that run one function together and sleep in between.
//
// Inside a run, workers meet at spinning barriers (a layer of a small model takes tens of
// microseconds; a futex round trip costs 5-50 on a virtual machine). After a run they spin for a
// quarter of its time, at most 50 us, then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/worker.h"

namespace sdengine {

// Generation barrier. Spins briefly, then yields, so that more threads than cores still make
// progress.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count), waiting_(count) {}
  void wait();

 private:
  const int count_;
  alignas(64) std::atomic<int> waiting_;
  alignas(64) std::atomic<uint32_t> generation_{0};
};

class ThreadPool {
 public:
  // `num_threads` counts the calling thread; it must be at least 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(worker) on every worker, the calling thread being worker 0; returns when all are
  // done. Not reentrant; one run at a time (guarded by a mutex, so two engines may share a pool).
  void run(const std::function<void(Worker&)>& body);

  // Wakes sleeping workers without giving them work: they spin for at most `max_wait_us` for the
  // run that is about to come.
  void prepare(int max_wait_us);

 private:
  void worker_main(int index);

  const int num_threads_;
  Barrier barrier_;
  std::vector<std::thread> threads_;
  std::mutex run_mutex_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  const std::function<void(Worker&)>* body_ = nullptr;
  alignas(64) std::atomic<uint32_t> ticket_{0};
  alignas(64) std::atomic<int> active_{0};
  alignas(64) std::atomic<uint32_t> prepare_ticket_{0};
  std::atomic<int> prepare_us_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace sdengine
