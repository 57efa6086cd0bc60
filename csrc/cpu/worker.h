// What a kernel sees of the machine: its index among the workers that run the same launch.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sdengine {

class Barrier;
struct PackedWeight;

// A half-open range of items.
struct Range {
  int64_t begin;
  int64_t end;
};

// One of `count` threads running a program in lockstep (SPMD).
struct Worker {
  int index;
  int count;
  Barrier* gate;
  const PackedWeight* ahead = nullptr;  // what the next launch that streams weights will stream

  // Waits until every worker of the launch has arrived.
  void barrier() const;

  // This worker's share of `items`, in multiples of `grain`; contiguous, balanced, empty at worst.
  Range share(int64_t items, int64_t grain = 1) const {
    const int64_t units = (items + grain - 1) / grain;
    const int64_t base = units / count;
    const int64_t extra = units % count;
    const int64_t first = index * base + std::min<int64_t>(index, extra);
    const int64_t last = first + base + (index < extra ? 1 : 0);
    return {std::min(first * grain, items), std::min(last * grain, items)};
  }
};

}  // namespace sdengine
