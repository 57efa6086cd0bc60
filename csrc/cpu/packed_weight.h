// Packed weights: the layout that `linear` streams.
//
// W [M, K] is cut into blocks of 32 outputs, a block into two strips of 16. A strip runs along K,
// one cache line after the other:
//   bfloat16: [ceil(K / 2)][16][2]   pairs of inputs side by side, as a bf16 dot product eats them;
//   float16: [K, rounded up to even][16]; float32: [K][16]
// Strips lie one behind the other, so that few columns are enough to read memory in the order of
// its addresses, which is what it is fast at; or, where dot products of bfloat16 read four at a
// time, four lie together, a line of each in turn (`strips_together`), for the same reason.
// Missing outputs and inputs are zero. With `interleave_gate_up`, W stacks gate [F, K] on up
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
constexpr int64_t kStripLine = 64;  // bytes
constexpr int64_t kMostStripsTogether = 4;

// Strips of a weight in this format that lie together: 1 or kMostStripsTogether, which the
// process's instruction set decides.
int64_t strips_together(Format format);

// Inputs that a strip of a matrix of K inputs holds.
inline int64_t padded_inputs(Format format, int64_t num_inputs) {
  return format == Format::kFloat32 ? num_inputs : (num_inputs + 1) / 2 * 2;
}

struct PackedWeight {
  const void* data;
  Format format;
  int64_t num_inputs;   // K
  int64_t num_outputs;  // M
  int64_t together;     // strips_together(format)

  int64_t num_blocks() const { return (num_outputs + kBlockOutputs - 1) / kBlockOutputs; }
  int64_t input_bytes() const { return kStripOutputs * element_bytes(format); }  // of a strip
  int64_t strip_bytes() const { return padded_inputs(format, num_inputs) * input_bytes(); }
  int64_t num_bytes() const { return num_blocks() * kBlockStrips * strip_bytes(); }

  // Where a strip's first line lies, in bytes from `data`, and bytes from a line to the next.
  int64_t strip_offset(int64_t strip) const {
    return strip / together * together * strip_bytes() + strip % together * kStripLine;
  }
  int64_t line_stride() const { return together * kStripLine; }
  // Bytes from a strip to the next, of those that are read side by side.
  int64_t strip_stride() const { return together > 1 ? kStripLine : strip_bytes(); }
};

// A weight as pack_weight left it at `data`.
inline PackedWeight packed_weight(const void* data, Format format, int64_t num_inputs,
                                  int64_t num_outputs) {
  return {data, format, num_inputs, num_outputs, strips_together(format)};
}

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
