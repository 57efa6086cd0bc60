#include "cpu/program.h"

#include <chrono>

namespace sdengine {

void Program::append_program(const Program& other) {
  launches_.insert(launches_.end(), other.launches_.begin(), other.launches_.end());
}

void Program::replay(ThreadPool& pool) const {
  pool.run([this](Worker& worker) {
    for (const Launch& launch : launches_) {
      launch.invoke(launch.args.get(), worker);
      worker.barrier();
    }
  });
}

std::vector<int64_t> Program::replay_timed(ThreadPool& pool) const {
  using Clock = std::chrono::steady_clock;
  std::vector<int64_t> elapsed(launches_.size());
  pool.run([&](Worker& worker) {
    auto last = Clock::now();
    for (size_t i = 0; i < launches_.size(); ++i) {
      launches_[i].invoke(launches_[i].args.get(), worker);
      worker.barrier();
      if (worker.index != 0) continue;
      const auto now = Clock::now();
      elapsed[i] = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
      last = now;
    }
  });
  return elapsed;
}

std::vector<std::string> Program::names() const {
  std::vector<std::string> names;
  for (const Launch& launch : launches_) names.emplace_back(launch.name);
  return names;
}

}  // namespace sdengine
