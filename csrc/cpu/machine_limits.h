// Probes of what the machine allows: read bandwidth, arithmetic peaks and meetings, with the
// threads of a pool.
//
// A roofline needs limits measured in the same run as the kernel: on a shared machine they drift by
// half within an hour.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/thread_pool.h"

namespace sdengine {

// How a worker reads its share: as so many streams side by side, with or without prefetches of its
// own.
struct ReadWay {
  int streams;
  bool fetches;
};

// Bytes per second of reading `bytes` at `data` `repeats` times; every worker reads its own
// contiguous share.
std::vector<double> measure_read(ThreadPool& pool, const void* data, int64_t bytes, ReadWay way,
                                 int repeats);

// Operations per second (a multiply-add counts two) of independent chains in registers, for about
// `milliseconds` each. `bf16_dot`: the instruction that `linear` uses for bfloat16 weights; but on
// avx512_bf16 that is the float32 FMA.
std::vector<double> measure_arithmetic(ThreadPool& pool, bool bf16_dot, double milliseconds,
                                       int repeats);

// Seconds that one barrier of all workers takes. A program has one after every launch, and what a
// worker wrote before it the others read after it, about as far away.
std::vector<double> measure_barriers(ThreadPool& pool, int repeats);

// Per instruction set. The return value keeps the work from being optimised away.
struct LimitProbes {
  // count: a multiple of 256 * way.streams
  float (*read)(const float* data, int64_t count, ReadWay way);
  float (*fma)(int64_t rounds);  // operations: rounds * fma_operations
  float (*bf16_dot)(int64_t rounds);
  int64_t fma_operations;
  int64_t bf16_dot_operations;
};
LimitProbes limit_probes_portable();
LimitProbes limit_probes_avx2();
LimitProbes limit_probes_avx512();
LimitProbes limit_probes_avx512_bf16();

}  // namespace sdengine
