// Probe loops, written once for all instruction sets.
#include "cpu/machine_limits.h"
#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace machine_limits_op {

constexpr int kReadChains = 8;
constexpr int kChains =
    kLanes == 16 ? 24 : 12;  // twice what latency needs, as many as registers allow

// Reads every byte once, in order. Software prefetch as in `linear`.
inline float read_all(const float* data, int64_t count) {
  Vec sums[kReadChains];
  for (Vec& s : sums) s = zeros();
  for (int64_t i = 0; i < count; i += kReadChains * kLanes) {
    for (int c = 0; c < kReadChains; ++c) {
      const float* p = data + i + c * kLanes;
      if (c * kLanes % 16 == 0) __builtin_prefetch(p + 1024);
      sums[c] = from_bits(bits_of(sums[c]) ^ bits_of(load(p)));
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
