// Both ways in which `linear` sweeps through weights of bfloat16 with dot products give the same
// bits, and write nothing but their share: prints "linear_sweeps: ok" or the first difference.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/linear.h"

namespace sdengine {
// Other formats go there; none is asked for.
void linear_blocks_avx512(const LinearArgs&, Range, const WeightShare&, void*) { std::abort(); }
}  // namespace sdengine

using namespace sdengine;

namespace {

struct Case {
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

std::vector<float> run(LinearBlocks blocks, LinearArgs args, const Case& c,
                       const std::vector<float>& before) {
  std::vector<float> out = before;
  std::vector<float> scratch((c.num_inputs + 64) * kLinearMaxRows);
  args.out = out.data();
  blocks(args, c.share, {nullptr, {0, 0}}, scratch.data());
  return out;
}

bool is_same(const Case& c) {
  const int64_t strips = (c.num_outputs + 63) / 64 * 4;
  const int64_t pairs = (c.num_inputs + 1) / 2;
  std::vector<uint16_t> weight;
  for (float value : random_floats(strips * pairs * 32)) weight.push_back(float_to_bf16(value));
  const std::vector<float> x = random_floats(c.num_rows * c.num_inputs);
  const std::vector<float> bias = random_floats(c.num_outputs);
  const int64_t width = c.is_gated ? c.num_outputs / 2 : c.num_outputs;
  const std::vector<float> before = random_floats(c.num_rows * width);
  const PackedWeight packed{weight.data(), Format::kBfloat16, c.num_inputs, c.num_outputs,
                            kMostStripsTogether};
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

}  // namespace

int main() {
  for (const int64_t num_inputs : {2, 7, 128, 130, 257, 640, 1100}) {
    for (const int64_t num_outputs : {32, 48, 96, 192, 224}) {
      const int64_t end = (num_outputs + 31) / 32;
      for (const int32_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 19, 24, 25, 31, 64, 130}) {
        for (int64_t begin = 0; begin < end && begin < 3; ++begin) {
          const bool is_odd = (num_inputs + rows + begin) % 2 != 0;
          const bool is_gated = is_odd && num_outputs % 32 == 0;
          const Case c{num_inputs,    num_outputs, rows,   {begin, end},
                       rows % 3 != 0, is_gated,    !is_odd};
          if (is_same(c)) continue;
          std::printf("%d rows, K %d, M %d, blocks from %d on differ\n", rows, int(num_inputs),
                      int(num_outputs), int(begin));
          return 1;
        }
      }
    }
  }
  std::puts("linear_sweeps: ok");
}
