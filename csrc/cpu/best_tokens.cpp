#include "cpu/best_tokens.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

namespace sdengine {
namespace {

// Inserts behind everything that ranks before it; tokens arrive in rising order, so equal scores
// keep the lower id.
int insert(ScoredToken* best, int count, int k, ScoredToken entry) {
  int place = count < k ? count : k - 1;
  while (place > 0 && best[place - 1].score < entry.score) {
    best[place] = best[place - 1];
    --place;
  }
  best[place] = entry;
  return count < k ? count + 1 : k;
}

}  // namespace

float kth_largest(const float* values, int64_t count, int64_t k) {
  if (k > count) return -std::numeric_limits<float>::infinity();
  thread_local std::vector<float> sorted;
  sorted.assign(values, values + count);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
  return sorted[k - 1];
}

int best_tokens(const float* scores, int64_t vocab_size, const float* block_max, int k,
                ScoredToken* best) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const int64_t num_blocks = num_vocab_blocks(vocab_size);
  const float floor = kth_largest(block_max, num_blocks, k);
  int count = 0;
  for (int64_t block = 0; block < num_blocks; ++block) {
    // Nothing that equals the k-th best can displace it: its token id is higher.
    const float weakest = count == k ? best[k - 1].score : kMinusInfinity;
    if (block_max[block] < floor || block_max[block] <= weakest) continue;
    const int64_t begin = block * kVocabBlock;
    uint64_t reach = vocab_passes().at_least(scores, begin, vocab_size, floor);
    for (; reach != 0; reach &= reach - 1) {
      const int64_t i = begin + __builtin_ctzll(reach);
      if (!(scores[i] > (count == k ? best[k - 1].score : kMinusInfinity))) continue;
      count = insert(best, count, k, {scores[i], static_cast<int32_t>(i)});
    }
  }
  return count;
}

}  // namespace sdengine
