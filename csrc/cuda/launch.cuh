// How a kernel is launched, and the C face of the library.
//
// Every entry point takes its arguments by address (they are copied into the launch), the stream as
// a plain pointer, and returns a cudaError_t as int. Nothing is allocated and nothing waits, so a
// launch can be captured in a graph.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define SDENGINE_CUDA_API extern "C" __attribute__((visibility("default")))

namespace sdengine {

struct LaunchShape {
  dim3 grid;
  int32_t threads;
  int64_t shared_bytes = 0;
  bool is_cooperative = false;  // all blocks are resident at once, so they may wait for each other
};

constexpr int64_t kPlainSharedBytes = 48 * 1024;  // above it a kernel has to ask for its memory

// Shared memory that a block of the current device can have; no kernel has any of fixed size.
inline cudaError_t shared_limit(int64_t* bytes) {
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes = limit;
  return error;
}

template <class... Params>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, void* stream,
                   Params... params) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return cudaSuccess;
  if (shape.shared_bytes > kPlainSharedBytes) {
    int64_t limit = 0;
    cudaError_t error = shared_limit(&limit);
    if (error != cudaSuccess) return error;
    if (shape.shared_bytes > limit) return cudaErrorLaunchOutOfResources;
    // All that there is, not what this launch takes: the permission is the kernel's, and another
    // thread's launch, or a captured one, may have counted on more.
    error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = shape.is_cooperative ? &attribute : nullptr;
  config.numAttrs = shape.is_cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

}  // namespace sdengine
