#include "cpu/machine_limits.inl"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace machine_limits_op {

inline float dot_chains(int64_t rounds) {
  volatile int32_t hidden = 0x00003f80;
  const IntVec a = broadcast_int(hidden);
  return run_chains(rounds, [=](Vec sum) -> Vec {
    const auto pair = reinterpret_cast<__m512bh>(a.v);
    return {_mm512_dpbf16_ps(sum.v, pair, pair)};
  });
}

}  // namespace machine_limits_op
}  // namespace SDENGINE_ISA_NAMESPACE

LimitProbes limit_probes_avx512_bf16() {
  using namespace machine_limits_op;
  constexpr int64_t kOperations = 2 * kChains * kLanes;
  return {read_all, fma_chains, dot_chains, kOperations, 2 * kOperations};
}

}  // namespace sdengine
