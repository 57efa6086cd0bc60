#include "cpu/linear.h"

#include <algorithm>
#include <vector>

#include "cpu/cpu_features.h"

namespace sdengine {
namespace {

LinearBlocks choose() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::kAvx512Bf16) return linear_blocks_avx512_bf16;
  if (selected_isa() == Isa::kAvx512) return linear_blocks_avx512;
  if (selected_isa() == Isa::kAvx2) return linear_blocks_avx2;
#endif
  return linear_blocks_portable;
}

// Room for one pass of rows, aligned to a cache line. Grows to the widest layer and stays.
void* row_scratch(int64_t rows, int64_t num_inputs) {
  static thread_local std::vector<float> memory;
  const size_t needed =
      static_cast<size_t>(std::min(rows, kLinearMaxRows) * (num_inputs + 32) + 16);
  if (memory.size() < needed) memory.resize(needed);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

WeightShare next_share(const Worker& worker) {
  if (worker.ahead == nullptr) return {nullptr, {0, 0}};
  return {worker.ahead, worker.share(worker.ahead->num_blocks())};
}

}  // namespace

void linear(const LinearArgs& args, Worker& worker) {
  static const LinearBlocks blocks = choose();
  static const bool copies_rows =
      blocks != linear_blocks_portable && selected_isa() >= Isa::kAvx512;
  const Range share = worker.share(args.weight.num_blocks());
  if (share.begin == share.end || *args.num_rows <= 0) return;
  blocks(args, share, next_share(worker),
         copies_rows ? row_scratch(*args.num_rows, args.weight.num_inputs) : nullptr);
}

}  // namespace sdengine
