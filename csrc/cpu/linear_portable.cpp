#include "cpu/linear.inl"

namespace sdengine {

void linear_blocks_portable(const LinearArgs& args, Range share, const WeightShare& next,
                            void* scratch) {
  linear_op::linear_blocks_of_format(args, share, next, scratch);
}

}  // namespace sdengine
