// The passes of this translation unit's instruction set against those of the portable build and the
// scalar noise: the same bits on random rows of every length, with masked tokens, ties and loose
// bounds.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/vocab_passes.h"
#include "cpu/vocab_passes.inl"

namespace sdengine {
extern const VocabPasses kVocabPassesPortable;
}

namespace {

using namespace sdengine;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
int failures = 0;

void expect(bool is_right, const char* what, size_t vocab) {
  if (is_right) return;
  ++failures;
  std::printf("%s differs at V=%zu\n", what, vocab);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Outcome {
  RowScan scan;
  std::vector<float> block_max, noise, scores, score_max, binned, penalized;
  std::vector<uint64_t> bins;
  uint64_t mass;
  ScoredToken best;
};

struct Case {
  std::vector<float> logits;
  std::vector<int32_t> prompt, output;
  float temperature, cut, bound;
  NoiseKey key;
};

Case random_case(std::mt19937& rng, int number) {
  const int vocab = 1 + static_cast<int>(rng() % 700);
  std::normal_distribution<float> normal(0.0f, 0.5f + static_cast<float>(rng() % 5));
  Case c;
  for (int i = 0; i < vocab; ++i) {
    c.logits.push_back(number % 3 == 0 ? std::round(normal(rng)) : normal(rng));
    c.prompt.push_back(rng() % 2);
    c.output.push_back(rng() % 3);
  }
  if (number % 5 == 0 && vocab > 1) c.logits[rng() % vocab] = -kInfinity;
  if (number % 50 == 0) c.logits[rng() % vocab] = std::nanf("");
  c.temperature = 0.2f + 0.1f * static_cast<float>(rng() % 20);
  c.cut = number % 2 == 0 ? kInfinity : 1.5f;
  c.bound = number % 4 == 0 ? -kInfinity : -3.2f;
  c.key = {uint64_t{rng()} << 20, static_cast<int32_t>(rng() % 1000), Purpose::kTarget,
           static_cast<int32_t>(rng())};
  return c;
}

Outcome run(const VocabPasses& passes, const Case& c) {
  const int64_t vocab = static_cast<int64_t>(c.logits.size());
  Outcome out;
  out.block_max.resize(num_vocab_blocks(vocab));
  out.score_max.resize(num_vocab_blocks(vocab));
  out.noise.resize(vocab);
  out.scores.resize(vocab);
  out.binned.resize(vocab);
  out.bins.resize(LogitBins::kCount + 1);
  out.scan = passes.scan(c.logits.data(), 0, vocab, out.block_max.data());
  if (out.scan.has_nan || !std::isfinite(out.scan.max)) return out;
  const RowScale scale = {out.scan.max, 1.0f / c.temperature};
  const float threshold = out.scan.max - c.cut;
  out.mass = passes.mass(c.logits.data(), 0, vocab, scale, threshold);
  out.best = passes.race(c.logits.data(), 0, vocab, out.block_max.data(), scale, threshold, c.key,
                         c.bound);
  passes.fill_noise(c.key, 0, vocab, out.noise.data());
  passes.perturb(c.logits.data(), 0, vocab, scale, out.noise.data(), out.scores.data(),
                 out.score_max.data());
  const LogitBins bins =
      LogitBins::over(std::fmax(out.scan.min, out.scan.max - 20.0f), out.scan.max);
  passes.histogram(c.logits.data(), 0, vocab, out.block_max.data(), scale, bins, out.bins.data());
  out.binned.resize(passes.gather_bin(c.logits.data(), 0, vocab, out.block_max.data(), bins, 0,
                                      out.binned.data()));
  out.penalized = c.logits;
  passes.penalize(out.penalized.data(), c.prompt.data(), c.output.data(), 0, vocab,
                  {1.3f, 0.2f, -0.1f});
  return out;
}

void compare(const Case& c) {
  const size_t vocab = c.logits.size();
  const Outcome mine = run(kThesePasses, c);
  const Outcome portable = run(kVocabPassesPortable, c);
  expect(mine.scan.has_nan == portable.scan.has_nan, "scan.has_nan", vocab);
  if (mine.scan.has_nan || !std::isfinite(mine.scan.max)) return;
  expect(mine.scan.max == portable.scan.max && mine.scan.min == portable.scan.min, "scan", vocab);
  expect(same_bits(mine.block_max, portable.block_max), "scan's block maxima", vocab);
  expect(mine.mass == portable.mass, "mass", vocab);
  expect(mine.best.token == portable.best.token && mine.best.score == portable.best.score, "race",
         vocab);
  expect(same_bits(mine.noise, portable.noise), "fill_noise", vocab);
  expect(same_bits(mine.scores, portable.scores), "perturb", vocab);
  expect(same_bits(mine.score_max, portable.score_max), "perturb's block maxima", vocab);
  expect(same_bits(mine.bins, portable.bins), "histogram", vocab);
  expect(same_bits(mine.binned, portable.binned), "gather_bin", vocab);
  expect(same_bits(mine.penalized, portable.penalized), "penalize", vocab);
  std::vector<float> scalar_noise;
  for (size_t i = 0; i < vocab; ++i) scalar_noise.push_back(gumbel(c.key, static_cast<int32_t>(i)));
  expect(same_bits(mine.noise, scalar_noise), "scalar noise", vocab);
}

}  // namespace

int main() {
  std::mt19937 rng(1);
  for (int number = 0; number < 1500; ++number) compare(random_case(rng, number));
  if (failures == 0) std::printf("vocab_passes: ok, %d lanes\n", kLanes);
  return failures == 0 ? 0 : 1;
}
