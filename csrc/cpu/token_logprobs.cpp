#include "cpu/token_logprobs.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/best_tokens.h"
#include "cpu/vocab_passes.h"

namespace sdengine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kMostAlternatives = 32;

// Logits of one row as log-probabilities.
struct Law {
  const float* logits;
  int64_t vocab_size;
  const float* block_max;
  float max;
  float log_total;

  float logprob(int32_t token) const { return logits[token] - max - log_total; }

  // 1 + how many logits are larger.
  int32_t rank(int32_t token) const {
    const float above = std::nextafter(logits[token], std::numeric_limits<float>::infinity());
    int32_t larger = 0;
    for (int64_t begin = 0; begin < vocab_size; begin += kVocabBlock) {
      if (block_max[begin / kVocabBlock] < above) continue;
      larger += __builtin_popcountll(vocab_passes().at_least(logits, begin, vocab_size, above));
    }
    return larger + 1;
  }
};

Law law_of(const float* logits, int64_t vocab_size) {
  thread_local std::vector<float> block_max;
  block_max.resize(num_vocab_blocks(vocab_size));
  const VocabPasses& passes = vocab_passes();
  const float max = passes.scan(logits, 0, vocab_size, block_max.data()).max;
  const uint64_t mass = passes.mass(logits, 0, vocab_size, {max, 1.0f}, kMinusInfinity);
  const double total = static_cast<double>(mass) * kMassUnit;
  return {logits, vocab_size, block_max.data(), max, static_cast<float>(std::log(total))};
}

void write_best(const TokenLogprobsArgs& args, const Law& law, int64_t place, int wanted) {
  int32_t* tokens = args.out_best_tokens + place * args.max_alternatives;
  float* logprobs = args.out_best_logprobs + place * args.max_alternatives;
  ScoredToken best[kMostAlternatives];
  const int found =
      wanted == 0 ? 0 : best_tokens(law.logits, law.vocab_size, law.block_max, wanted, best);
  for (int i = 0; i < wanted; ++i) {
    tokens[i] = i < found ? best[i].token : -1;
    logprobs[i] = i < found ? law.logprob(best[i].token) : kMinusInfinity;
  }
}

void describe_token(const TokenLogprobsArgs& args, int64_t b, int64_t i) {
  const int32_t token = args.tokens[b * (args.max_depth + 1) + i];
  if (token < 0) return;
  const int32_t node = i == 0 ? 0 : args.path[b * args.max_depth + i - 1];
  const int64_t row = args.logit_starts[b] + node;
  const Law law = law_of(args.logits + row * args.vocab_size, args.vocab_size);
  const int64_t place = b * args.num_places + (args.history_lens[b] + i) % args.num_places;
  args.out_logprobs[place] = law.logprob(token);
  args.out_ranks[place] = law.rank(token);
  write_best(args, law, place, args.num_alternatives[b]);
}

}  // namespace

void token_logprobs(const TokenLogprobsArgs& args, Worker& worker) {
  int64_t turn = 0;
  for (int64_t b = 0; b < *args.num_seqs; ++b) {
    if (args.num_alternatives[b] < 0 || args.wants_logits[b] == 0) continue;
    for (int64_t i = 0; i <= args.num_accepted[b]; ++i) {
      if (turn++ % worker.count == worker.index) describe_token(args, b, i);
    }
  }
}

}  // namespace sdengine
