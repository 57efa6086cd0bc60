// The machine as a kernel sees it: the threads of a block, its shared memory, and the few
// collective operations that the kernels are written in.
//
// Nothing here has a result that depends on timing: sums are of integers, minima and ranks have one
// answer. So a kernel gives the bits of the serial algorithm for every block size.
//
// Everything is plain CUDA C++ except what the #if below names; a compiler without devices brings
// its own cuda_runtime.h with threads for threads (tests/native/cuda_on_threads).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

constexpr int32_t kWarpSize = 32;
constexpr uint32_t kWholeWarp = 0xffffffffu;
constexpr int32_t kMaxWarps = 32;

#if defined(__CUDACC__)
__device__ inline unsigned char* shared_memory() {
  extern __shared__ uint4 words[];
  return reinterpret_cast<unsigned char*>(words);
}
// Adds to a counter that other blocks watch. What the caller wrote before is visible to whoever
// reads the new count.
__device__ inline uint32_t add_release(uint32_t* counter, uint32_t amount) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(amount)
               : "memory");
  return before;
}
__device__ inline uint32_t load_acquire(const uint32_t* counter) {
  uint32_t count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  return count;
}
// The device's clock: nanoseconds from an arbitrary zero, in steps of about a microsecond.
__device__ inline int64_t device_clock_ns() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
#endif

// Cuts a block's shared memory, or its part of a scratch tensor, into arrays. With base nullptr it
// only counts, so that the launcher asks for exactly what the kernel takes.
class SharedLayout {
 public:
  SDE_HD explicit SharedLayout(unsigned char* base) : base_(base) {}

  template <class T>
  SDE_HD T* take(int64_t count) {
    bytes_ = (bytes_ + alignof(T) - 1) / alignof(T) * alignof(T);
    T* array = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += count * static_cast<int64_t>(sizeof(T));
    return array;
  }
  SDE_HD int64_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  int64_t bytes_ = 0;
};

struct RunningSum {
  int32_t before;
  int32_t total;
};

// The threads of a block, a multiple of 32 of them. Every method is called by all of them.
class Block {
 public:
  // `words`: kMaxWarps words of shared memory that nobody else uses.
  __device__ explicit Block(uint32_t* words) : words_(words) {}

  __device__ int32_t rank() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ int32_t size() const { return static_cast<int32_t>(blockDim.x); }
  __device__ bool is_leader() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncthreads(); }

  __device__ int32_t sum(int32_t x) const {
    const uint32_t own = __reduce_add_sync(kWholeWarp, static_cast<uint32_t>(x));
    uint32_t total = 0;
    exchange(own, [&](uint32_t word) { total += word; });
    return static_cast<int32_t>(total);
  }

  // Of numbers of 0 or more, whose sum needs more than a word: digit by digit.
  __device__ int64_t sum_wide(int64_t x) const {
    constexpr int32_t kDigitBits = 22;  // so much that 1024 threads' digits add up within a word
    int64_t total = 0;
    for (int32_t shift = 0; shift < 63; shift += kDigitBits) {
      const int64_t digit = x >> shift & ((int64_t{1} << kDigitBits) - 1);
      const uint32_t digits = static_cast<uint32_t>(sum(static_cast<int32_t>(digit)));
      total += static_cast<int64_t>(digits) << shift;
    }
    return total;
  }

  // The bits that any thread has.
  __device__ uint32_t either(uint32_t bits) const {
    uint32_t result = 0;
    exchange(__reduce_or_sync(kWholeWarp, bits), [&](uint32_t word) { result |= word; });
    return result;
  }

  __device__ uint32_t least(uint32_t x) const {
    uint32_t result = ~0u;
    exchange(__reduce_min_sync(kWholeWarp, x),
             [&](uint32_t word) { result = word < result ? word : result; });
    return result;
  }

  // Of floats that are >= 0, whose bits order like integers.
  __device__ float least_positive(float x) const {
    return __uint_as_float(least(__float_as_uint(x)));
  }

  // Sum over the threads before this one, and the sum over all.
  __device__ RunningSum sum_before(int32_t x) const {
    const int32_t lane = rank() % kWarpSize;
    int32_t through = x;
    for (int32_t step = 1; step < kWarpSize; step *= 2) {
      const int32_t from = __shfl_up_sync(kWholeWarp, through, step);
      if (lane >= step) through += from;
    }
    const int32_t whole = __shfl_sync(kWholeWarp, through, kWarpSize - 1);
    return add_warps({through - x, 0}, whole);
  }

  // The same for flags: how many threads before this one raised theirs.
  __device__ RunningSum count_flags(bool flag) const {
    const uint32_t raised = __ballot_sync(kWholeWarp, flag);
    const uint32_t lower = (1u << rank() % kWarpSize) - 1;
    return add_warps({__popc(raised & lower), 0}, __popc(raised));
  }

 private:
  // Completes sums that so far stand for the thread's own warp, whose total is `whole`.
  __device__ RunningSum add_warps(RunningSum sum, int32_t whole) const {
    const int32_t warp = rank() / kWarpSize;
    int32_t w = 0;
    exchange(static_cast<uint32_t>(whole), [&](uint32_t word) {
      sum.before += w++ < warp ? static_cast<int32_t>(word) : 0;
      sum.total += static_cast<int32_t>(word);
    });
    return sum;
  }

  // One word per warp to every thread, in the order of the warps.
  template <class Take>
  __device__ void exchange(uint32_t own, Take take) const {
    if (rank() % kWarpSize == 0) words_[rank() / kWarpSize] = own;
    sync();
    for (int32_t w = 0; w < size() / kWarpSize; ++w) take(words_[w]);
    sync();
  }

  uint32_t* words_;
};

}  // namespace sdengine
