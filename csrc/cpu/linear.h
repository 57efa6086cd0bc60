// linear: out = x W^T with packed weights, float32 activations, and fused RMS norm of x, bias,
// residual or SiLU gate.
//
// Row-invariant: an output element is the sum, in order, of partial sums over 128 inputs each; a
// partial sum is one chain of multiply-adds in the order of k. Neither depends on the number of
// rows, the row group or the thread count. Chains of 128 cost nothing (chains of 64: 1%) and halve
// the rounding error of a chain over 2048.
#pragma once

#include "cpu/packed_weight.h"
#include "cpu/worker.h"

namespace sdengine {

// Sixteen bits are bfloat16: of x where the kernel multiplies it so, of out with silu_gate.
struct LinearArgs {
  const void* x;  // [N_x, K]
  Format x_format;
  PackedWeight weight;  // [M, K]
  void* out;            // [N, M]; [N, M / 2] with silu_gate
  Format out_format;
  const int32_t* num_rows;  // [1]
  const float* bias;        // [M] or nullptr
  const int32_t* rows;      // [N] rows of x to take, or nullptr
  const float* norm;        // [K]: rows of x are normalised first, as rms_norm does; or nullptr
  float eps;                // of that norm
  bool accumulate;          // out += instead of out =
  bool silu_gate;           // W was packed with gate and up interleaved; out = silu(gate) * up
};

void linear(const LinearArgs& args, Worker& worker);

// Blocks of a weight that a worker streams.
struct WeightShare {
  const PackedWeight* weight;  // nullptr: unknown
  Range blocks;
};

// A share of the blocks of 32 output columns, per instruction set; `next` is the worker's in its
// next launch. `scratch` has room for one pass of rows where the instruction set wants them
// copied or they are normalised, and is nullptr elsewhere.
using LinearBlocks = void (*)(const LinearArgs& args, Range share, const WeightShare& next,
                              void* scratch);
void linear_blocks_portable(const LinearArgs& args, Range share, const WeightShare& next,
                            void* scratch);
void linear_blocks_avx2(const LinearArgs& args, Range share, const WeightShare& next,
                        void* scratch);
void linear_blocks_avx512(const LinearArgs& args, Range share, const WeightShare& next,
                          void* scratch);
// With dot products of bfloat16, of which, as of multiply-adds, a core starts one in a cycle, or
// two. The same bits.
void linear_blocks_avx512_one_dot(const LinearArgs& args, Range share, const WeightShare& next,
                                  void* scratch);
void linear_blocks_avx512_two_dots(const LinearArgs& args, Range share, const WeightShare& next,
                                   void* scratch);

// Rows that pass over one chunk of weights together; more rows read the weights again.
constexpr int64_t kLinearMaxRows = 128;

}  // namespace sdengine
