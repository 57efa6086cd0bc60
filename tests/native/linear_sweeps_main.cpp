// Both ways in which `linear` sweeps through weights on processors with dot products of bfloat16
// give the same bits, and write something: prints "linear_sweeps: ok" or the first difference.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/linear.h"

using namespace sdengine;

namespace {

struct Case {
  Format format;
  int64_t num_inputs, num_outputs;
  int32_t num_rows;
  Range share;  // blocks
  bool has_bias, is_gated, accumulates;
};

std::mt19937 generator(0);

std::vector<float> random_floats(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

std::vector<char> random_weights(Format format, int64_t count) {
  std::vector<char> weights(count * element_bytes(format));
  char* to = weights.data();
  for (float value : random_floats(count)) {
    const uint16_t bfloat = float_to_bf16(value);
    const Half half = float_to_half(value);
    const void* from = format == Format::kFloat32    ? static_cast<const void*>(&value)
                       : format == Format::kBfloat16 ? static_cast<const void*>(&bfloat)
                                                     : static_cast<const void*>(&half);
    std::memcpy(to, from, element_bytes(format));
    to += element_bytes(format);
  }
  return weights;
}

std::vector<float> run(LinearBlocks blocks, LinearArgs args, const Case& c,
                       const std::vector<float>& before) {
  std::vector<float> out = before;
  std::vector<float> scratch((c.num_inputs + 64) * kLinearMaxRows);
  args.out = out.data();
  blocks(args, c.share, {nullptr, {0, 0}}, scratch.data());
  return out;
}

bool is_same(const Case& c) {
  const int64_t strips = (c.num_outputs + 63) / 64 * kMostStripsTogether;
  const std::vector<char> weight =
      random_weights(c.format, strips * padded_inputs(c.format, c.num_inputs) * kStripOutputs);
  const std::vector<float> x = random_floats(c.num_rows * c.num_inputs);
  const std::vector<float> bias = random_floats(c.num_outputs);
  const int64_t width = c.is_gated ? c.num_outputs / 2 : c.num_outputs;
  const std::vector<float> before = random_floats(c.num_rows * width);
  const int64_t together = c.format == Format::kBfloat16 ? kMostStripsTogether : 1;
  const PackedWeight packed{weight.data(), c.format, c.num_inputs, c.num_outputs, together};
  const LinearArgs args{x.data(),
                        Format::kFloat32,
                        packed,
                        nullptr,
                        Format::kFloat32,
                        &c.num_rows,
                        c.has_bias ? bias.data() : nullptr,
                        nullptr,
                        nullptr,
                        0.0f,
                        c.accumulates,
                        c.is_gated};
  const std::vector<float> one = run(linear_blocks_avx512_one_dot, args, c, before);
  const std::vector<float> two = run(linear_blocks_avx512_two_dots, args, c, before);
  return std::memcmp(one.data(), two.data(), one.size() * sizeof(float)) == 0 && one != before;
}

// Rows that fill groups and that do not, odd sizes, shares that begin within what lies together.
bool are_same(Format format) {
  for (const int64_t num_inputs : {2, 7, 128, 130, 257, 640}) {
    for (const int64_t num_outputs : {32, 48, 96, 224}) {
      const int64_t end = (num_outputs + kBlockOutputs - 1) / kBlockOutputs;
      for (const int32_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 19, 24, 25, 31, 64, 130}) {
        for (int64_t begin = 0; begin < end && begin < 3; ++begin) {
          const bool is_odd = (num_inputs + rows + begin) % 2 != 0;
          const bool is_gated = is_odd && num_outputs % kBlockOutputs == 0;
          const Case c{format,       num_inputs,    num_outputs, rows,
                       {begin, end}, rows % 3 != 0, is_gated,    !is_odd};
          if (is_same(c)) continue;
          std::printf("format %d, %d rows, K %d, M %d, blocks from %d on differ\n", int(format),
                      rows, int(num_inputs), int(num_outputs), int(begin));
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  for (const Format format : {Format::kFloat32, Format::kBfloat16, Format::kFloat16})
    if (!are_same(format)) return 1;
  std::puts("linear_sweeps: ok");
}
