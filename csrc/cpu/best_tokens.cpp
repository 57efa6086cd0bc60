#include "cpu/best_tokens.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

namespace sdengine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Values that are ranked by counting what is larger than each, without branches: inserted one by
// one, the candidates of a step of two small trees took 24.5 us instead of 20.9.
constexpr int kMostCounted = 64;

// Tokens whose scores reach a floor, in rising order.
struct Contenders {
  alignas(64) float scores[kMostCounted];
  int32_t tokens[kMostCounted];
  int count;
};

// Calls `take(token, score)` for every token whose score reaches `floor` and is above -inf, in
// rising order, until it returns false.
template <class Take>
void for_each_from(const float* scores, int64_t vocab_size, const float* block_max, float floor,
                   const Take& take) {
  const int64_t num_blocks = num_vocab_blocks(vocab_size);
  for (int64_t block = 0; block < num_blocks; ++block) {
    if (block_max[block] < floor || block_max[block] == kMinusInfinity) continue;
    const int64_t begin = block * kVocabBlock;
    uint64_t reach = vocab_passes().at_least(scores, begin, vocab_size, floor);
    for (; reach != 0; reach &= reach - 1) {
      const int64_t i = begin + __builtin_ctzll(reach);
      if (scores[i] > kMinusInfinity && !take(static_cast<int32_t>(i), scores[i])) return;
    }
  }
}

// Inserts behind everything that ranks before it; tokens arrive in rising order, so equal scores
// keep the lower id.
int insert(ScoredToken* best, int count, int k, ScoredToken entry) {
  if (count == k && !(entry.score > best[k - 1].score)) return count;
  int place = count < k ? count : k - 1;
  while (place > 0 && best[place - 1].score < entry.score) {
    best[place] = best[place - 1];
    --place;
  }
  best[place] = entry;
  return count < k ? count + 1 : k;
}

// The first k of the contenders: each goes behind as many as are larger, and behind its equals of
// lower id.
int rank(const Contenders& found, int k, ScoredToken* best) {
  alignas(64) int32_t above[kMostCounted];
  int8_t equals[kMostCounted] = {};  // placed so far, by what is above them
  vocab_passes().count_above(found.scores, found.count, above);
  for (int i = 0; i < found.count; ++i) {
    const int place = above[i] + equals[above[i]]++;
    if (place < k) best[place] = {found.scores[i], found.tokens[i]};
  }
  return found.count < k ? found.count : k;
}

float kth_by_counting(const float* values, int count, int64_t k) {
  alignas(64) float copy[kMostCounted] = {};
  alignas(64) int32_t above[kMostCounted];
  std::copy(values, values + count, copy);
  vocab_passes().count_above(copy, count, above);
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < count; ++i) least = above[i] < k && values[i] < least ? values[i] : least;
  return least;
}

}  // namespace

float kth_largest(const float* values, int64_t count, int64_t k) {
  if (k > count) return kMinusInfinity;
  if (count <= kMostCounted) return kth_by_counting(values, static_cast<int>(count), k);
  thread_local std::vector<float> sorted;
  sorted.assign(values, values + count);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
  return sorted[k - 1];
}

int best_tokens(const float* scores, int64_t vocab_size, const float* block_max, int k,
                ScoredToken* best) {
  const float floor = kth_largest(block_max, num_vocab_blocks(vocab_size), k);
  Contenders found{};
  bool fits = true;
  for_each_from(scores, vocab_size, block_max, floor, [&](int32_t token, float score) {
    fits = found.count < kMostCounted;
    if (!fits) return false;
    found.scores[found.count] = score;
    found.tokens[found.count++] = token;
    return true;
  });
  if (fits) return rank(found, k, best);
  int count = 0;
  for_each_from(scores, vocab_size, block_max, floor, [&](int32_t token, float score) {
    count = insert(best, count, k, {score, token});
    return true;
  });
  return count;
}

}  // namespace sdengine
