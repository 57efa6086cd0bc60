#include "cpu/linear.inl"

namespace sdengine {

void linear_blocks_avx2(const LinearArgs& args, const LinearShare& share, void* scratch) {
  if (args.weight_is_bf16) {
    linear_op::linear_blocks<linear_op::WidenedBf16>(args, share, scratch);
  } else {
    linear_op::linear_blocks<linear_op::Fp32>(args, share, scratch);
  }
}

}  // namespace sdengine
