#include "cpu/linear.inl"

namespace sdengine {

void linear_blocks_portable(const LinearArgs& args, int64_t begin, int64_t end, void* scratch) {
  if (args.weight_is_bf16) {
    linear_op::linear_blocks<linear_op::WidenedBf16>(args, begin, end, scratch);
  } else {
    linear_op::linear_blocks<linear_op::Fp32>(args, begin, end, scratch);
  }
}

}  // namespace sdengine
