// Packed weights: the layout that `linear` streams.
//
// W [M, K] is cut into blocks of 32 outputs; a block is contiguous and runs along K:
//   bfloat16: [ceil(M / 32)][ceil(K / 2)][32][2]   pairs of inputs side by side, as a bf16 dot
//   product eats them float32:  [ceil(M / 32)][K][32]
// Missing outputs and inputs are zero. With `interleave_gate_up`, W stacks gate [F, K] on up [F, K]
// and a block holds 16 outputs of the gate, then the same 16 of up.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/worker.h"

namespace sdengine {

constexpr int64_t kBlockOutputs = 32;

struct PackedWeight {
  const void* data;
  bool is_bf16;
  int64_t num_inputs;   // K
  int64_t num_outputs;  // M

  int64_t num_blocks() const { return (num_outputs + kBlockOutputs - 1) / kBlockOutputs; }
  int64_t input_bytes() const { return kBlockOutputs * (is_bf16 ? 2 : 4); }  // of a block
  int64_t block_bytes() const {
    return (is_bf16 ? (num_inputs + 1) / 2 * 2 : num_inputs) * input_bytes();
  }
};

// Consecutive rows of W somewhere in memory.
struct WeightRows {
  const void* data;
  int64_t num_rows;
  int64_t row_stride;  // elements
};

struct PackArgs {
  std::vector<WeightRows> parts;  // stacked: W is their concatenation
  bool source_is_bf16;
  bool packed_is_bf16;
  void* packed;
  int64_t num_inputs;   // K
  int64_t num_outputs;  // M
  bool interleave_gate_up;
};

// Every worker packs its share of the blocks; needs no memory of its own.
void pack_weight(const PackArgs& args, Worker& worker);

}  // namespace sdengine
