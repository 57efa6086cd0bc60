#include "cpu/packed_weight.h"

#include <algorithm>

#include "cpu/cpu_features.h"

namespace sdengine {
namespace {

constexpr int64_t kTile = 64;  // inputs transposed at a time: 32 x 64 elements stay in the L1 cache

inline float widen(float from) { return from; }
inline float widen(uint16_t from) { return bf16_to_float(from); }
inline float widen(Half from) { return half_to_float(from); }
inline void round_to(float from, float* to) { *to = from; }
inline void round_to(float from, uint16_t* to) { *to = float_to_bf16(from); }
inline void round_to(float from, Half* to) { *to = float_to_half(from); }
template <class From, class To>
inline void convert(From from, To* to) {
  round_to(widen(from), to);
}
template <class T>
inline void convert(T from, T* to) {
  *to = from;
}

// Row `index` of the stacked weight; nullptr past its end.
const void* find_row(const PackArgs& args, int64_t index) {
  const int64_t element = element_bytes(args.source_format);
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

// Where input k of column c stands inside a strip whose lines are `line` elements apart.
template <class T>
inline int64_t offset(int64_t k, int64_t c, int64_t line, const T*) {
  constexpr int64_t kInputs = kStripLine / sizeof(T) / kStripOutputs;  // of a line
  return k / kInputs * line + k % kInputs * kStripOutputs + c;
}
inline int64_t offset(int64_t k, int64_t c, int64_t line, const uint16_t*) {
  return k / 2 * line + 2 * c + k % 2;
}

template <class From, class To>
void pack_block(const PackArgs& args, int64_t block) {
  const PackedWeight packed =
      packed_weight(args.packed, args.packed_format, args.num_inputs, args.num_outputs);
  const int64_t num_inputs = padded_inputs(packed.format, packed.num_inputs);
  const int64_t line = packed.line_stride() / sizeof(To);
  To* strips[kBlockStrips];
  for (int64_t s = 0; s < kBlockStrips; ++s)
    strips[s] =
        static_cast<To*>(args.packed) + packed.strip_offset(block * kBlockStrips + s) / sizeof(To);
  const From* rows[kBlockOutputs];
  for (int64_t c = 0; c < kBlockOutputs; ++c)
    rows[c] = static_cast<const From*>(row_of(args, block, c));
  for (int64_t tile = 0; tile < num_inputs; tile += kTile) {
    const int64_t end = std::min(tile + kTile, num_inputs);
    for (int64_t c = 0; c < kBlockOutputs; ++c) {
      To* strip = strips[c / kStripOutputs];
      const int64_t column = c % kStripOutputs;
      const int64_t given = rows[c] == nullptr ? tile : std::min(end, args.num_inputs);
      for (int64_t k = tile; k < given; ++k)
        convert(rows[c][k], strip + offset(k, column, line, strip));
      for (int64_t k = given; k < end; ++k) strip[offset(k, column, line, strip)] = To{};
    }
  }
}

template <class From, class To>
void pack_share(const PackArgs& args, Worker& worker) {
  const Range blocks = worker.share((args.num_outputs + kBlockOutputs - 1) / kBlockOutputs);
  for (int64_t b = blocks.begin; b < blocks.end; ++b) pack_block<From, To>(args, b);
}

template <class From>
void pack_from(const PackArgs& args, Worker& worker) {
  switch (args.packed_format) {
    case Format::kFloat32:
      return pack_share<From, float>(args, worker);
    case Format::kBfloat16:
      return pack_share<From, uint16_t>(args, worker);
    case Format::kFloat16:
      return pack_share<From, Half>(args, worker);
  }
}

}  // namespace

int64_t strips_together(Format format) {
  const bool are_dotted = format == Format::kBfloat16 && selected_isa() == Isa::kAvx512Bf16;
  return are_dotted ? kMostStripsTogether : 1;
}

void pack_weight(const PackArgs& args, Worker& worker) {
  switch (args.source_format) {
    case Format::kFloat32:
      return pack_from<float>(args, worker);
    case Format::kBfloat16:
      return pack_from<uint16_t>(args, worker);
    case Format::kFloat16:
      return pack_from<Half>(args, worker);
  }
}

}  // namespace sdengine
