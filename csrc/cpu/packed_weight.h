// Packed weights: the layout that `linear` streams.
//
// W [M, K] is cut into blocks of 32 outputs, a block into two strips of 16. A strip runs along K,
// one cache line after the other, and strips lie one behind the other:
//   bfloat16: [ceil(M / 32)][2][ceil(K / 2)][16][2]   pairs of inputs side by side, as a bf16 dot
//   product eats them; float16: [ceil(M / 32)][2][K, rounded up to even][16]; float32:
//   [ceil(M / 32)][2][K][16]
// So few columns are enough to read memory in the order of its addresses, which is what it is fast
// at. Missing outputs and inputs are zero. With `interleave_gate_up`, W stacks gate [F, K] on up
// [F, K], and the first strip of a block holds 16 outputs of the gate, the second the same 16 of
// up.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/number_format.h"
#include "cpu/worker.h"

namespace sdengine {

constexpr int64_t kStripOutputs = 16;
constexpr int64_t kBlockStrips = 2;
constexpr int64_t kBlockOutputs = kBlockStrips * kStripOutputs;

// Inputs that a strip of a matrix of K inputs holds.
inline int64_t padded_inputs(Format format, int64_t num_inputs) {
  return format == Format::kFloat32 ? num_inputs : (num_inputs + 1) / 2 * 2;
}

struct PackedWeight {
  const void* data;
  Format format;
  int64_t num_inputs;   // K
  int64_t num_outputs;  // M

  int64_t num_blocks() const { return (num_outputs + kBlockOutputs - 1) / kBlockOutputs; }
  int64_t input_bytes() const { return kStripOutputs * element_bytes(format); }  // of a strip
  int64_t strip_bytes() const { return padded_inputs(format, num_inputs) * input_bytes(); }
  int64_t num_bytes() const { return num_blocks() * kBlockStrips * strip_bytes(); }
};

// Consecutive rows of W somewhere in memory.
struct WeightRows {
  const void* data;
  int64_t num_rows;
  int64_t row_stride;  // elements
};

struct PackArgs {
  std::vector<WeightRows> parts;  // stacked: W is their concatenation
  Format source_format;
  Format packed_format;
  void* packed;
  int64_t num_inputs;   // K
  int64_t num_outputs;  // M
  bool interleave_gate_up;
};

// Every worker packs its share of the blocks; needs no memory of its own.
void pack_weight(const PackArgs& args, Worker& worker);

}  // namespace sdengine
