#include "cpu/program.h"

#include <chrono>
#include <stdexcept>

namespace sdengine {

void Program::begin_if(const int32_t* count) {
  open_ifs_.push_back(steps_.size());
  steps_.push_back({nullptr, nullptr, count, 0, kNoWeight});
}

void Program::end_if() {
  if (open_ifs_.empty()) throw std::logic_error("end_if without begin_if");
  steps_[open_ifs_.back()].end = steps_.size();
  open_ifs_.pop_back();
}

// Runs a worker's part of every step; after each launch all workers meet, and `after_launch` gets
// its index.
template <class AfterLaunch>
void Program::run_steps(Worker& worker, AfterLaunch after_launch) const {
  for (size_t i = 0; i < steps_.size();) {
    const Step& step = steps_[i];
    if (step.invoke == nullptr) {
      i = *step.count > 0 ? i + 1 : step.end;
      continue;
    }
    worker.ahead =
        step.weight == kNoWeight ? nullptr : &weights_[(step.weight + 1) % weights_.size()];
    step.invoke(step.args.get(), worker);
    worker.barrier();
    after_launch(i++);
  }
}

void Program::check_closed() const {
  if (!open_ifs_.empty()) throw std::logic_error("begin_if without end_if");
}

void Program::replay(ThreadPool& pool) const {
  check_closed();
  pool.run([this](Worker& worker) { run_steps(worker, [](size_t) {}); });
}

int Program::replay_in_a_row(ThreadPool& pool, int num_replays, const ReplayCopies& copies) const {
  check_closed();
  int num_done = 0;  // of worker 0
  pool.run([&](Worker& worker) {
    bool goes_on = true;
    for (int i = 0; i < num_replays && goes_on; ++i) {
      run_steps(worker, [](size_t) {});
      if (worker.index == 0) {
        copies.copy(i);
        num_done = i + 1;
      }
      if (i + 1 == num_replays) return;
      worker.barrier();  // nobody writes before it is copied
      goes_on = stop_count_ == nullptr || *stop_count_ > 0;
    }
  });
  return num_done;
}

std::vector<int64_t> Program::replay_timed(ThreadPool& pool) const {
  using Clock = std::chrono::steady_clock;
  check_closed();
  std::vector<int64_t> spent(steps_.size());
  pool.run([&](Worker& worker) {
    auto last = Clock::now();
    run_steps(worker, [&](size_t i) {
      if (worker.index != 0) return;
      const auto now = Clock::now();
      spent[i] = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
      last = now;
    });
  });
  std::vector<int64_t> of_launches;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (steps_[i].invoke != nullptr) of_launches.push_back(spent[i]);
  }
  return of_launches;
}

}  // namespace sdengine
