// timestamp: notes when the queue reaches this launch. Contract: kernels/timestamp.py.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/timestamp.h"

namespace sdengine {
namespace {

__global__ void timestamp_kernel(TimestampArgs args) {
  if (threadIdx.x == 0) *args.out_ns = device_clock_ns();
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_timestamp(const sdengine::TimestampArgs* args, int32_t,
                                              void* stream) {
  using namespace sdengine;
  return launch(timestamp_kernel, {dim3(1), kWarpSize}, stream, *args);
}
