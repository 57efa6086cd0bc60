#include "cpu/machine_limits.inl"

namespace sdengine {

LimitProbes limit_probes_avx512() {
  using namespace machine_limits_op;
  constexpr int64_t kOperations = 2 * kChains * kLanes;
  return {read_all, fma_chains, fma_chains, kOperations, kOperations};
}

}  // namespace sdengine
