// CUDA on CPU threads: just enough of the runtime for g++ to compile the kernels unchanged and run
// one thread of the machine for each thread of the grid.
//
// All blocks of a launch run at once and nothing orders them, so that the thread sanitizer sees
// races within a block and between blocks; a block's shared memory is a heap buffer of exactly the
// size asked for, so that the address sanitizer sees every step beyond. Blocks are made smaller
// than asked for (a warp, or what CUDA_BLOCK_THREADS says): kernels have to work for any whole
// number of warps. Not modelled: the order of memory between blocks beyond acquire and release, and
// the lockstep of a warp, which no kernel may rely on. Shared memory beyond 48 KiB has to be asked
// for, and there is an end to it, as on a device.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __noinline__

struct dim3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace cuda_on_threads {

constexpr int kWarpSize = 32;
constexpr int kMaxBlocksAtOnce = 8;

// Read at every launch, so that one process can see blocks of one warp and of several.
inline int max_block_threads() {
  const char* said = std::getenv("CUDA_BLOCK_THREADS");
  return said == nullptr ? kWarpSize : std::atoi(said);
}

// The ordinal of a barrier that every thread leaves out, counted within a launch; 0: none.
inline int& missing_barrier() {
  static int ordinal = 0;
  return ordinal;
}

// Few, but so many that teams of blocks form already in small batches.
inline int& num_multiprocessors() {
  static int count = 8;
  return count;
}

// Shared memory that a block can have; as on 9.0.
inline int& max_shared_bytes() {
  static int bytes = 227 * 1024;
  return bytes;
}

// What a launch may take of it: by kernel, where more than the usual was asked for.
inline std::map<const void*, size_t>& granted_bytes() {
  static std::map<const void*, size_t> bytes;
  return bytes;
}

// Launches are checked, but nothing runs: for sizes that would take the threads of a machine.
inline bool& is_dry() {
  static bool is_dry = false;
  return is_dry;
}

// A barrier. Sleeping in the kernel is the fast way: with far more threads than cores, a version
// that gave way in a loop took more than twice as long.
class Gate {
 public:
  explicit Gate(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
  ~Gate() { pthread_barrier_destroy(&barrier_); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

// Words that lanes show one another: two sets in turn, so that one barrier per exchange is enough.
struct Warp {
  Gate gate{kWarpSize};
  uint64_t words[2][kWarpSize] = {};
};

struct Block {
  Block(int threads, size_t shared_bytes)
      : gate(static_cast<unsigned>(threads)),
        warps(static_cast<size_t>(threads / kWarpSize)),
        shared(nullptr, &std::free) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignof(uint4), shared_bytes) != 0) std::abort();
    shared.reset(static_cast<unsigned char*>(memory));
  }
  Gate gate;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared;
};

struct Thread {
  Block* block = nullptr;
  int index = 0;
  int barriers = 0;
  int exchanges = 0;
};

inline thread_local Thread self;

// Shows a word to the warp and returns all words.
inline const uint64_t* exchange(uint64_t word) {
  Warp& warp = self.block->warps[static_cast<size_t>(self.index / kWarpSize)];
  uint64_t* words = warp.words[self.exchanges++ % 2];
  words[self.index % kWarpSize] = word;
  warp.gate.wait();
  return words;
}

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one word");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace cuda_on_threads

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() {
  using cuda_on_threads::self;
  if (++self.barriers != cuda_on_threads::missing_barrier()) self.block->gate.wait();
}

template <class T>
T __shfl_sync(uint32_t, T value, int lane) {
  using namespace cuda_on_threads;
  return from_word<T>(exchange(to_word(value))[lane]);
}

template <class T>
T __shfl_up_sync(uint32_t, T value, unsigned step) {
  using namespace cuda_on_threads;
  const uint64_t* words = exchange(to_word(value));
  const int lane = self.index % kWarpSize;
  return from_word<T>(words[lane < static_cast<int>(step) ? lane : lane - static_cast<int>(step)]);
}

template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  using namespace cuda_on_threads;
  const uint64_t* words = exchange(to_word(value));
  return from_word<T>(words[(self.index % kWarpSize) ^ mask]);
}

inline uint32_t __ballot_sync(uint32_t, bool flag) {
  const uint64_t* words = cuda_on_threads::exchange(flag ? 1 : 0);
  uint32_t raised = 0;
  for (int lane = 0; lane < 32; ++lane) raised |= static_cast<uint32_t>(words[lane]) << lane;
  return raised;
}

inline bool __any_sync(uint32_t mask, bool flag) { return __ballot_sync(mask, flag) != 0; }

inline uint32_t __reduce_add_sync(uint32_t, uint32_t value) {
  const uint64_t* words = cuda_on_threads::exchange(value);
  uint32_t sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += static_cast<uint32_t>(words[lane]);
  return sum;
}

inline uint32_t __reduce_min_sync(uint32_t, uint32_t value) {
  const uint64_t* words = cuda_on_threads::exchange(value);
  uint64_t least = words[0];
  for (int lane = 1; lane < 32; ++lane) least = words[lane] < least ? words[lane] : least;
  return static_cast<uint32_t>(least);
}

inline uint32_t __reduce_or_sync(uint32_t, uint32_t value) {
  const uint64_t* words = cuda_on_threads::exchange(value);
  uint64_t either = 0;
  for (int lane = 0; lane < 32; ++lane) either |= words[lane];
  return static_cast<uint32_t>(either);
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<uint32_t>(bits)); }
inline void __nanosleep(unsigned) { sched_yield(); }
inline float __uint_as_float(uint32_t bits) { return cuda_on_threads::from_word<float>(bits); }
inline uint32_t __float_as_uint(float x) {
  return static_cast<uint32_t>(cuda_on_threads::to_word(x));
}

template <class T>
T __ldcg(const T* address) {
  return *address;
}

template <class T>
T atomicAdd(T* address, T amount) {
  return __atomic_fetch_add(address, amount, __ATOMIC_RELAXED);
}

namespace sdengine {
inline unsigned char* shared_memory() { return cuda_on_threads::self.block->shared.get(); }
inline uint32_t add_release(uint32_t* counter, uint32_t amount) {
  return __atomic_fetch_add(counter, amount, __ATOMIC_ACQ_REL);
}
inline uint32_t load_acquire(const uint32_t* counter) {
  return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}
inline int64_t device_clock_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}
}  // namespace sdengine

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorLaunchOutOfResources = 701
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  using namespace cuda_on_threads;
  if (bytes > max_shared_bytes()) return cudaErrorInvalidValue;
  granted_bytes()[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  if (!cuda_on_threads::is_dry()) std::memset(at, value, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid value";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  using namespace cuda_on_threads;
  *value = attribute == cudaDevAttrMultiProcessorCount ? num_multiprocessors() : max_shared_bytes();
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <class... Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Params... params) {
  using namespace cuda_on_threads;
  const auto granted = granted_bytes().find(reinterpret_cast<const void*>(kernel));
  const size_t most = granted == granted_bytes().end() ? size_t{48} * 1024 : granted->second;
  if (config->dynamicSmemBytes > most) return cudaErrorInvalidValue;
  if (is_dry()) return cudaSuccess;
  const unsigned asked = config->blockDim.x, limit = static_cast<unsigned>(max_block_threads());
  const unsigned threads = asked < limit ? asked : limit;
  const unsigned blocks = config->gridDim.x * config->gridDim.y;
  const unsigned wave = config->numAttrs > 0 ? blocks : unsigned{kMaxBlocksAtOnce};
  for (unsigned first = 0; first < blocks; first += wave) {
    std::vector<std::unique_ptr<Block>> running;
    std::vector<std::thread> machine;
    for (unsigned at = first; at < blocks && at < first + wave; ++at) {
      running.push_back(
          std::make_unique<Block>(static_cast<int>(threads), config->dynamicSmemBytes));
      Block* block = running.back().get();
      for (unsigned t = 0; t < threads; ++t) {
        machine.emplace_back([=] {
          self = {block, static_cast<int>(t), 0, 0};
          threadIdx = dim3(t);
          blockDim = dim3(threads);
          gridDim = config->gridDim;
          blockIdx = dim3(at % config->gridDim.x, at / config->gridDim.x);
          kernel(params...);
        });
      }
    }
    for (std::thread& thread : machine) thread.join();
  }
  return cudaSuccess;
}
