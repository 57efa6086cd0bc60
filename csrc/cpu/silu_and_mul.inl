#include "cpu/shares.h"
#include "cpu/silu_and_mul.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace {

constexpr int64_t kColumns =
    256;  // work is shared in pieces of this many columns: one row can use all workers

SDE_INLINE Vec silu(Vec gate) { return gate / (broadcast(1.0f) + exp(-gate)); }

void activate(const float* gate, const float* up, float* out, int64_t width) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(out + i, silu(load(gate + i)) * load(up + i));
  if (i < width) {
    const int n = static_cast<int>(width - i);
    store_partial(out + i, silu(load_partial(gate + i, n)) * load_partial(up + i, n), n);
  }
}

}  // namespace

void silu_and_mul_kernel(const SiluAndMulArgs& args, Worker& worker) {
  const int64_t width = args.ffn_size;
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  // An element costs about four times a plain load and store: the exponential.
  const Range range = share_work(worker, *args.num_rows * pieces, 4 * kColumns);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t row = i / pieces;
    const int64_t column = i % pieces * kColumns;
    const float* gate = args.x + row * 2 * width + column;
    const int64_t n = width - column < kColumns ? width - column : kColumns;
    activate(gate, gate + width, args.out + row * width + column, n);
  }
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
