#include "cpu/linear.h"

#include <algorithm>

#include "cpu/cpu_features.h"
#include "cpu/thread_memory.h"

namespace sdengine {
namespace {

// What runs on this machine, and whether it copies rows into an even grid first.
struct Variant {
  LinearBlocks blocks;
  bool copies_rows;
};

Variant choose() {
#if defined(__x86_64__)
  if (selected_isa() == Isa::kAvx512Bf16)
    return {starts_two_dots() ? linear_blocks_avx512_two_dots : linear_blocks_avx512_one_dot, true};
  if (selected_isa() == Isa::kAvx512) return {linear_blocks_avx512, true};
  if (selected_isa() == Isa::kAvx2) return {linear_blocks_avx2, false};
#endif
  return {linear_blocks_portable, false};
}

// Room for one pass of rows.
void* row_scratch(int64_t rows, int64_t num_inputs) {
  return thread_memory(std::min(rows, kLinearMaxRows) * (num_inputs + 32) * sizeof(float));
}

WeightShare next_share(const Worker& worker) {
  if (worker.ahead == nullptr) return {nullptr, {0, 0}};
  return {worker.ahead, worker.share(worker.ahead->num_blocks())};
}

}  // namespace

void linear(const LinearArgs& args, Worker& worker) {
  static const Variant variant = choose();
  const Range share = worker.share(args.weight.num_blocks());
  if (share.begin == share.end || *args.num_rows <= 0) return;
  const int64_t num_inputs = args.weight.num_inputs;
  variant.blocks(args, share, next_share(worker),
                 variant.copies_rows || args.norm != nullptr
                     ? row_scratch(*args.num_rows, num_inputs)
                     : nullptr);
}

}  // namespace sdengine
