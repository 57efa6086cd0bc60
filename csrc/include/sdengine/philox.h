// Philox4x32-10, the counter-based generator behind all noise.
#pragma once

#include "sdengine/scalar_lanes.h"

namespace sdengine {
namespace scalar {

#define SDE_LANE_FN SDE_HD inline
#include "sdengine/noise_lanes.inl"
#undef SDE_LANE_FN

}  // namespace scalar

struct PhiloxBlock {
  uint32_t words[4];
};

// The block of four random words at a counter, under a key.
SDE_HD inline PhiloxBlock philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                        uint64_t key) {
  scalar::IntVec c[4] = {scalar::wrap(c0), scalar::wrap(c1), scalar::wrap(c2), scalar::wrap(c3)};
  scalar::philox_rounds(c, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  return {{scalar::raw(c[0]), scalar::raw(c[1]), scalar::raw(c[2]), scalar::raw(c[3])}};
}

}  // namespace sdengine
