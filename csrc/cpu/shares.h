// How elementwise ops divide their work.
#pragma once

#include "cpu/vec.h"
#include "cpu/worker.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

// Elements below which another worker costs more than it saves: about half a microsecond of work in
// cache, the time a cache line needs to travel to the other core and back.
constexpr int64_t kElementsPerWorker = 4096;

// This worker's contiguous range of `items`, each of `elements` floats; workers without enough to
// do get none.
SDE_INLINE Range share_work(const Worker& worker, int64_t items, int64_t elements) {
  int64_t count = items * elements / kElementsPerWorker;
  if (count > worker.count) count = worker.count;
  if (count < 1) count = 1;
  if (worker.index >= count) return {0, 0};
  return {items * worker.index / count, items * (worker.index + 1) / count};
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
