// A program: a list of launches on static buffers, recorded once and replayed in one call.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/packed_weight.h"
#include "cpu/replay_copies.h"
#include "cpu/thread_pool.h"

namespace sdengine {

class Program {
 public:
  // Adds a launch of `kernel(args, worker)`; args are copied. Every worker runs it, then all meet
  // at a barrier.
  template <class Args>
  void append(void (*kernel)(const Args&, Worker&), const Args& args) {
    struct Bound {
      void (*kernel)(const Args&, Worker&);
      Args args;
    };
    auto bound = std::make_shared<const Bound>(Bound{kernel, args});
    ++num_launches_;
    steps_.push_back({[](const void* data, Worker& worker) {
                        const auto* launch = static_cast<const Bound*>(data);
                        launch->kernel(launch->args, worker);
                      },
                      bound, nullptr, 0, kNoWeight});
  }

  // The same for a launch that streams a weight. While it runs, its workers know the weight that
  // the next such launch streams; after the last one comes the first, of the next replay.
  template <class Args>
  void append(void (*kernel)(const Args&, Worker&), const Args& args, const PackedWeight& weight) {
    append(kernel, args);
    steps_.back().weight = static_cast<int>(weights_.size());
    weights_.push_back(weight);
  }

  // Launches from here to the matching end_if run only if *count > 0 when the replay gets here.
  // Neither the first of them nor the one after end_if may write `count`: workers read it without a
  // barrier of its own, and a skipped block has none.
  void begin_if(const int32_t* count);
  void end_if();

  void replay(ThreadPool& pool) const;

  // Replays in a row end with the first that leaves *count at 0. The first launch must not write
  // it: workers read it without a barrier of its own.
  void stop_at_zero(const int32_t* count) { stop_count_ = count; }

  // Replays up to `num_replays` times in one run of the pool, and has what each one leaves behind
  // copied. Returns how many there were.
  int replay_in_a_row(ThreadPool& pool, int num_replays, const ReplayCopies& copies) const;

  // As replay, but returns nanoseconds per launch as worker 0 saw them, barrier included; 0 for a
  // launch that was skipped.
  std::vector<int64_t> replay_timed(ThreadPool& pool) const;

  size_t size() const { return num_launches_; }

 private:
  // A launch, or, without `invoke`, the beginning of launches that depend on `count`.
  struct Step {
    void (*invoke)(const void*, Worker&);
    std::shared_ptr<const void> args;
    const int32_t* count;
    size_t end;  // of the launches that depend on it
    int weight;  // index of what it streams
  };
  static constexpr int kNoWeight = -1;
  void check_closed() const;
  template <class AfterLaunch>
  void run_steps(Worker& worker, AfterLaunch after_launch) const;

  std::vector<Step> steps_;
  std::vector<PackedWeight> weights_;  // in the order in which they are streamed
  const int32_t* stop_count_ = nullptr;
  size_t num_launches_ = 0;
  std::vector<size_t> open_ifs_;
};

}  // namespace sdengine
