// Probe loops, written once for all instruction sets.
#include "cpu/machine_limits.h"
#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace machine_limits_op {

constexpr int kReadChains = 8;
constexpr int64_t kBurst = 256;  // floats
constexpr int kChains =
    kLanes == 16 ? 24 : 12;  // twice what latency needs, as many as registers allow

// Reads every byte once, line after line: gcc 12 mixed the lines of a burst if it could, and a Zen
// 4 server read 28 GB/s instead of 62. Which way is fastest depends on the prefetchers: on a Zen 3
// server two streams in bursts of 1 KB, left to the hardware, read 21.8 GB/s where one with
// software prefetches read 18.3 (medians), and `linear` beat a floor from the latter.
inline float read_all(const float* data, int64_t count, ReadWay way) {
  const int64_t stride = count / way.streams;
  constexpr int64_t kAhead = 1024;
  Vec sums[kReadChains];
  for (Vec& s : sums) s = zeros();
  for (int64_t i = 0; i < stride; i += kBurst) {
    for (int s = 0; s < way.streams; ++s) {
      const float* burst = data + s * stride + i;
      for (int64_t k = 0; k < kBurst; k += kReadChains * kLanes) {
        for (int c = 0; c < kReadChains; ++c) {
          const float* p = burst + k + c * kLanes;
          if (way.fetches && c * kLanes % 16 == 0) __builtin_prefetch(p + kAhead);
          sums[c] = from_bits(bits_of(sums[c]) ^ bits_of(load(p)));
          asm volatile("" ::: "memory");
        }
      }
    }
  }
  for (int c = 1; c < kReadChains; ++c) sums[0] = from_bits(bits_of(sums[0]) ^ bits_of(sums[c]));
  return max_lane(sums[0]);
}

// One multiply-add on each of kChains registers; `Step` is the instruction.
template <class Step>
inline float run_chains(int64_t rounds, Step step) {
  Vec sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = broadcast(1e-9f * c);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) sums[c] = step(sums[c]);
  }
  for (int c = 1; c < kChains; ++c) sums[0] = sums[0] + sums[c];
  return max_lane(sums[0]);
}

inline float fma_chains(int64_t rounds) {
  volatile float scale = 0.9999f;  // hides the values from the compiler
  const Vec a = broadcast(scale);
  const Vec b = broadcast(scale * 1e-9f);
  return run_chains(rounds, [=](Vec sum) { return fma(sum, a, b); });
}

}  // namespace machine_limits_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
