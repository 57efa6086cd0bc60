// Branches of a graph under capture: what is captured between begin and end runs only if a count on
// the device is above 0 when the graph gets there (conditional nodes, CUDA 12.4 and newer).
#include "cuda/launch.cuh"

namespace sdengine {
namespace {

__global__ void set_condition_kernel(cudaGraphConditionalHandle handle, const int32_t* count) {
  cudaGraphSetConditional(handle, *count > 0);
}

// The graph that a stream is captured into, and the nodes that what comes next depends on.
struct Capture {
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* nodes = nullptr;
  size_t num_nodes = 0;
};

// CUDA 13 put data of edges into the signatures that follow; ours are whole dependencies: no data.
cudaError_t capture_of(cudaStream_t stream, Capture* capture) {
  cudaStreamCaptureStatus status;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, nullptr, &capture->graph,
                                                     &capture->nodes, nullptr, &capture->num_nodes);
#else
  const cudaError_t error = cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, &capture->graph,
                                                        &capture->nodes, &capture->num_nodes);
#endif
  if (error != cudaSuccess) return error;
  return status == cudaStreamCaptureStatusActive ? cudaSuccess : cudaErrorIllegalState;
}

cudaError_t add_node(const Capture& capture, cudaGraphNodeParams* params, cudaGraphNode_t* node) {
#if CUDART_VERSION >= 13000
  return cudaGraphAddNode(node, capture.graph, capture.nodes, nullptr, capture.num_nodes, params);
#else
  return cudaGraphAddNode(node, capture.graph, capture.nodes, capture.num_nodes, params);
#endif
}

cudaError_t continue_after(cudaStream_t stream, cudaGraphNode_t node) {
#if CUDART_VERSION >= 13000
  return cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1,
                                             cudaStreamSetCaptureDependencies);
#else
  return cudaStreamUpdateCaptureDependencies(stream, &node, 1, cudaStreamSetCaptureDependencies);
#endif
}

cudaError_t begin_branch(const int32_t* count, cudaStream_t stream, cudaStream_t body) {
  Capture capture;
  cudaError_t error = capture_of(stream, &capture);
  if (error != cudaSuccess) return error;
  cudaGraphNodeParams params{};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.type = cudaGraphCondTypeIf;
  params.conditional.size = 1;
  error = cudaGraphConditionalHandleCreate(&params.conditional.handle, capture.graph, 0, 0);
  if (error != cudaSuccess) return error;
  error = launch(set_condition_kernel, {dim3(1), 1}, stream, params.conditional.handle, count);
  if (error != cudaSuccess) return error;
  error = capture_of(stream, &capture);  // what comes next now depends on the condition
  if (error != cudaSuccess) return error;
  cudaGraphNode_t node;
  error = add_node(capture, &params, &node);
  if (error != cudaSuccess) return error;
  error = continue_after(stream, node);
  if (error != cudaSuccess) return error;
  return cudaStreamBeginCaptureToGraph(body, params.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                       cudaStreamCaptureModeThreadLocal);
}

}  // namespace
}  // namespace sdengine

// `stream` is under capture; from now on `body`, another one, is captured into the branch.
SDENGINE_CUDA_API int sdengine_cuda_begin_branch(const int32_t* count, void* stream, void* body) {
  return sdengine::begin_branch(count, static_cast<cudaStream_t>(stream),
                                static_cast<cudaStream_t>(body));
}

SDENGINE_CUDA_API int sdengine_cuda_end_branch(void* body) {
  cudaGraph_t graph = nullptr;
  return cudaStreamEndCapture(static_cast<cudaStream_t>(body), &graph);
}

// After a failure: `body` is under capture no more, whatever was captured.
SDENGINE_CUDA_API int sdengine_cuda_abandon_branch(void* body) {
  const auto stream = static_cast<cudaStream_t>(body);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  cudaGraph_t graph = nullptr;
  if (error == cudaSuccess && status != cudaStreamCaptureStatusNone) {
    cudaStreamEndCapture(stream, &graph);  // fails where the capture had failed
    cudaGetLastError();
  }
  return error;
}

// A stream that nobody else has, of the current device; it does not wait for the default one.
SDENGINE_CUDA_API int sdengine_cuda_make_stream(void** stream) {
  return cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking);
}

SDENGINE_CUDA_API int sdengine_cuda_free_stream(void* stream) {
  return cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}
