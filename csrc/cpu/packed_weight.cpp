#include "cpu/packed_weight.h"

#include "cpu/bf16.h"

namespace sdengine {
namespace {

constexpr int64_t kTile = 64;  // inputs transposed at a time: 32 x 64 elements stay in the L1 cache

inline void convert(float from, float* to) { *to = from; }
inline void convert(float from, uint16_t* to) { *to = float_to_bf16(from); }
inline void convert(uint16_t from, float* to) { *to = bf16_to_float(from); }
inline void convert(uint16_t from, uint16_t* to) { *to = from; }

// Row `index` of the stacked weight; nullptr past its end.
const void* find_row(const PackArgs& args, int64_t index) {
  const int64_t element = args.source_is_bf16 ? 2 : 4;
  for (const WeightRows& part : args.parts) {
    if (index < part.num_rows)
      return static_cast<const char*>(part.data) + index * part.row_stride * element;
    index -= part.num_rows;
  }
  return nullptr;
}

// The row of W at place `column` of block `block`.
const void* row_of(const PackArgs& args, int64_t block, int64_t column) {
  if (!args.interleave_gate_up) return find_row(args, block * kBlockOutputs + column);
  const int64_t half = kBlockOutputs / 2;
  const int64_t feature = block * half + column % half;
  const int64_t num_features = args.num_outputs / 2;
  if (feature >= num_features) return nullptr;
  return find_row(args, column < half ? feature : num_features + feature);
}

// Where input k of column c stands inside a strip.
inline int64_t offset(int64_t k, int64_t c, const float*) { return k * kStripOutputs + c; }
inline int64_t offset(int64_t k, int64_t c, const uint16_t*) {
  return (k / 2) * 2 * kStripOutputs + 2 * c + k % 2;
}

template <class From, class To>
void pack_block(const PackArgs& args, int64_t block, int64_t padded_inputs) {
  To* packed = static_cast<To*>(args.packed) + block * padded_inputs * kBlockOutputs;
  const From* rows[kBlockOutputs];
  for (int64_t c = 0; c < kBlockOutputs; ++c)
    rows[c] = static_cast<const From*>(row_of(args, block, c));
  for (int64_t tile = 0; tile < padded_inputs; tile += kTile) {
    const int64_t end = std::min(tile + kTile, padded_inputs);
    for (int64_t c = 0; c < kBlockOutputs; ++c) {
      To* strip = packed + c / kStripOutputs * padded_inputs * kStripOutputs;
      const int64_t column = c % kStripOutputs;
      const int64_t given = rows[c] == nullptr ? tile : std::min(end, args.num_inputs);
      for (int64_t k = tile; k < given; ++k) convert(rows[c][k], strip + offset(k, column, strip));
      for (int64_t k = given; k < end; ++k) strip[offset(k, column, strip)] = To(0);
    }
  }
}

template <class From, class To>
void pack_share(const PackArgs& args, int64_t padded_inputs, Worker& worker) {
  const Range blocks = worker.share((args.num_outputs + kBlockOutputs - 1) / kBlockOutputs);
  for (int64_t b = blocks.begin; b < blocks.end; ++b) pack_block<From, To>(args, b, padded_inputs);
}

}  // namespace

void pack_weight(const PackArgs& args, Worker& worker) {
  const int64_t even = (args.num_inputs + 1) / 2 * 2;
  if (args.packed_is_bf16) {
    if (args.source_is_bf16) return pack_share<uint16_t, uint16_t>(args, even, worker);
    return pack_share<float, uint16_t>(args, even, worker);
  }
  if (args.source_is_bf16) return pack_share<uint16_t, float>(args, args.num_inputs, worker);
  return pack_share<float, float>(args, args.num_inputs, worker);
}

}  // namespace sdengine
