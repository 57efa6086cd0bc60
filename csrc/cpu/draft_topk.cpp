#include "cpu/draft_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/best_tokens.h"

namespace sdengine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Row {
  const float* logits;
  int32_t packed;
  int32_t seq;
  int32_t* tokens;
  float* probs;
};

// Working memory of one worker; the largest row decides its size.
struct RowMemory {
  std::vector<float> scores;
  std::vector<float> block_max;
  std::vector<float> noise;
  NoiseKey noise_key;  // what `noise` was drawn with
  bool has_noise;
  const float* common_noise;  // of all rows of the launch; nullptr where keys differ
};

Row row_of(const DraftTopkArgs& args, int64_t r) {
  const int32_t packed = args.rows == nullptr ? static_cast<int32_t>(r) : args.rows[r];
  return {args.logits + r * args.vocab_size, packed, args.row_seq[packed],
          args.out_tokens + r * args.num_candidates, args.out_probs + r * args.num_candidates};
}

RowMemory& row_memory(int64_t vocab_size) {
  thread_local RowMemory memory;
  if (static_cast<int64_t>(memory.scores.size()) < vocab_size) {
    memory.scores.resize(vocab_size);
    memory.block_max.resize(num_vocab_blocks(vocab_size));
    memory.noise.resize(vocab_size);
  }
  return memory;
}

NoiseKey key_of(const DraftTopkArgs& args, const Row& row) {
  return {static_cast<uint64_t>(args.seeds[row.seq]), args.positions[row.packed] + 1,
          Purpose::kTarget, 0};
}

bool is_same(const NoiseKey& a, const NoiseKey& b) {
  return a.seed == b.seed && a.position == b.position;
}

// Below it a barrier costs more than it saves: a token's noise takes 3 ns, a barrier up to 1 us.
constexpr int64_t kMinSlicedVocab = 1024;

// Whether all rows need the noise of one key, as a layer of one sequence's tree does.
bool has_common_noise(const DraftTopkArgs& args, int num_workers) {
  const int64_t num_rows = *args.num_rows;
  if (args.is_fresh || num_workers == 1 || num_rows == 0) return false;
  if (args.vocab_size < kMinSlicedVocab) return false;
  const Row first = row_of(args, 0);
  if (args.temperature[first.seq] < kGreedyTemperature) return false;
  const NoiseKey key = key_of(args, first);
  for (int64_t r = 1; r < num_rows; ++r) {
    if (!is_same(key_of(args, row_of(args, r)), key)) return false;
  }
  return true;
}

// Noise of a key over the vocabulary. Nodes of equal depth in one sequence share theirs, and
// drawing it is three quarters of a row's work, so it is kept from row to row.
const float* noise_of(RowMemory& memory, const NoiseKey& key, int64_t vocab_size) {
  if (memory.common_noise != nullptr) return memory.common_noise;
  const NoiseKey& held = memory.noise_key;
  if (!memory.has_noise || !is_same(held, key)) {
    vocab_passes().fill_noise(key, 0, vocab_size, memory.noise.data());
    memory.noise_key = key;
    memory.has_noise = true;
  }
  return memory.noise.data();
}

float weight(float scaled) { return scalar::stable_exp({scaled}).v; }

// A candidate list shorter than K ends in token -1, probability 0.
void write_candidates(const Row& row, const ScoredToken* best, int count, int capacity) {
  for (int j = 0; j < capacity; ++j) {
    row.tokens[j] = j < count ? best[j].token : -1;
    row.probs[j] = 0.0f;
  }
}

// Order by perturbed score (greedy: by logit); probability = softmax(score) over the row.
void coupled_candidates(const DraftTopkArgs& args, const Row& row, RowMemory& memory,
                        RowScan scan) {
  const float temperature = args.temperature[row.seq];
  const bool is_greedy = temperature < kGreedyTemperature;
  const float* scores = row.logits;
  if (!is_greedy) {
    vocab_passes().perturb(row.logits, 0, args.vocab_size, row_scale(scan.max, temperature),
                           noise_of(memory, key_of(args, row), args.vocab_size),
                           memory.scores.data(), memory.block_max.data());
    scores = memory.scores.data();
  }
  ScoredToken best[kMaxCandidates];
  const int count =
      best_tokens(scores, args.vocab_size, memory.block_max.data(), args.num_candidates, best);
  write_candidates(row, best, count, args.num_candidates);
  const RowScale scale = {best[0].score, 1.0f};
  const uint64_t mass = vocab_passes().mass(scores, 0, args.vocab_size, scale, kMinusInfinity);
  const float total = static_cast<float>(static_cast<double>(mass) * kMassUnit);
  for (int j = 0; j < count; ++j) row.probs[j] = weight(best[j].score - scale.max) / total;
}

// q = softmax over the K best logits; drawn without replacement by fresh Gumbel noise,
// probabilities in draw order.
void fresh_candidates(const DraftTopkArgs& args, const Row& row, RowMemory& memory, RowScan scan) {
  const float temperature = args.temperature[row.seq];
  const RowScale scale = row_scale(scan.max, temperature);
  const NoiseKey key = {static_cast<uint64_t>(args.seeds[row.seq]), args.tree_starts[row.seq] - 1,
                        Purpose::kDraft, args.node_slots[row.packed]};
  ScoredToken best[kMaxCandidates];
  int count =
      best_tokens(row.logits, args.vocab_size, memory.block_max.data(), args.num_candidates, best);
  float logits[kMaxCandidates];
  for (int j = 0; j < count; ++j) logits[j] = best[j].score;
  const uint64_t mass = vocab_passes().mass(logits, 0, count, scale, kMinusInfinity);
  for (int j = 0; j < count && temperature >= kGreedyTemperature; ++j) {
    best[j].score = perturbed_score(logits[j], scale.max, scale.inverse_temperature,
                                    gumbel(key, best[j].token));
  }
  std::sort(best, best + count, [](const ScoredToken& a, const ScoredToken& b) {
    return ranks_before(a.score, a.token, b.score, b.token);
  });
  // A logit so far below the largest that its score overflows has no chance: no candidate.
  while (best[count - 1].score == kMinusInfinity) --count;
  write_candidates(row, best, count, args.num_candidates);
  const float total = static_cast<float>(static_cast<double>(mass) * kMassUnit);
  for (int j = 0; j < count; ++j) {
    row.probs[j] =
        weight((row.logits[best[j].token] - scale.max) * scale.inverse_temperature) / total;
  }
}

void draft_row(const DraftTopkArgs& args, int64_t r) {
  const Row row = row_of(args, r);
  RowMemory& memory = row_memory(args.vocab_size);
  const RowScan scan = vocab_passes().scan(row.logits, 0, args.vocab_size, memory.block_max.data());
  if (scan.has_nan || !std::isfinite(scan.max)) {
    write_candidates(row, nullptr, 0, args.num_candidates);
  } else if (args.is_fresh) {
    fresh_candidates(args, row, memory, scan);
  } else {
    coupled_candidates(args, row, memory, scan);
  }
}

}  // namespace

void draft_topk(const DraftTopkArgs& args, Worker& worker) {
  RowMemory& memory = row_memory(args.vocab_size);
  memory.has_noise = false;  // another vocabulary may have used it
  memory.common_noise = nullptr;
  if (has_common_noise(args, worker.count)) {
    const Range slice = worker.share(args.vocab_size, kVocabBlock);
    vocab_passes().fill_noise(key_of(args, row_of(args, 0)), slice.begin, slice.end,
                              args.noise->data());
    worker.barrier();
    memory.common_noise = args.noise->data();
  }
  const Range rows = worker.share(*args.num_rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) draft_row(args, r);
}

}  // namespace sdengine
