#include "cpu/linear.inl"

namespace sdengine {

void linear_blocks_portable(const LinearArgs& args, Range share, const WeightShare& next,
                            void* scratch) {
  if (args.weight.is_bf16) {
    linear_op::linear_blocks<linear_op::WidenedBf16>(args, share, next, scratch);
  } else {
    linear_op::linear_blocks<linear_op::Fp32>(args, share, next, scratch);
  }
}

}  // namespace sdengine
