#include "cpu/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu/cpu_features.h"

namespace sdengine {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kGrain = 512;  // floats

LimitProbes choose() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::kAvx512Bf16) return limit_probes_avx512_bf16();
  if (selected_isa() == Isa::kAvx512) return limit_probes_avx512();
  if (selected_isa() == Isa::kAvx2) return limit_probes_avx2();
#endif
  return limit_probes_portable();
}

// Runs work(worker) on all workers between two barriers, `repeats` times; seconds of each.
template <class Work>
std::vector<double> time_together(ThreadPool& pool, int repeats, const Work& work) {
  std::vector<double> seconds(repeats);
  std::atomic<float> sink{0.0f};
  pool.run_on(pool.num_threads(), [&](Worker& worker) {
    for (int i = 0; i < repeats; ++i) {
      worker.barrier();
      const auto start = Clock::now();
      sink.store(work(worker), std::memory_order_relaxed);
      worker.barrier();
      if (worker.index == 0)
        seconds[i] = std::chrono::duration<double>(Clock::now() - start).count();
    }
  });
  return seconds;
}

std::vector<double> rates(const std::vector<double>& seconds, double amount) {
  std::vector<double> out;
  for (double s : seconds) out.push_back(amount / std::max(s, 1e-9));
  return out;
}

}  // namespace

std::vector<double> measure_read(ThreadPool& pool, const void* data, int64_t bytes, ReadWay way,
                                 int repeats) {
  const LimitProbes probes = choose();
  const int64_t count = bytes / 4 / kGrain * kGrain;
  const auto* floats = static_cast<const float*>(data);
  const auto seconds = time_together(pool, repeats, [&](Worker& worker) {
    const Range share = worker.share(count, kGrain);
    return probes.read(floats + share.begin, share.end - share.begin, way);
  });
  return rates(seconds, static_cast<double>(count) * 4);
}

std::vector<double> measure_arithmetic(ThreadPool& pool, bool bf16_dot, double milliseconds,
                                       int repeats) {
  const LimitProbes probes = choose();
  const auto run = bf16_dot ? probes.bf16_dot : probes.fma;
  const double operations =
      static_cast<double>(bf16_dot ? probes.bf16_dot_operations : probes.fma_operations);
  constexpr int64_t kTrial = 20000;
  const auto trial = time_together(pool, 5, [&](Worker&) { return run(kTrial); });
  const double each = *std::min_element(trial.begin(), trial.end()) / kTrial;
  const int64_t rounds =
      std::max<int64_t>(kTrial, static_cast<int64_t>(milliseconds * 1e-3 / each));
  const auto seconds = time_together(pool, repeats, [&](Worker&) { return run(rounds); });
  return rates(seconds, operations * static_cast<double>(rounds) * pool.num_threads());
}

std::vector<double> measure_barriers(ThreadPool& pool, int repeats) {
  constexpr int kBarriers = 1000;
  const auto seconds = time_together(pool, repeats, [&](Worker& worker) {
    for (int i = 0; i < kBarriers; ++i) worker.barrier();
    return 0.0f;
  });
  std::vector<double> each;
  for (double s : seconds) each.push_back(s / kBarriers);
  return each;
}

}  // namespace sdengine
