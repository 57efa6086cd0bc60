// ngram_match on random texts: structure, budgets, and that every proposed path follows an earlier
// occurrence.
#include <algorithm>

#include "ngram_case.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Random;
using fuzz::require;

// Whether the first token of some path can be found after an earlier occurrence of the last
// min_ngram tokens.
bool follows_a_match(const int32_t* text, int32_t count, int32_t min_ngram, int32_t token) {
  for (int32_t end = min_ngram; end < count; ++end) {
    if (text[end] == token &&
        std::equal(text + end - min_ngram, text + end, text + count - min_ngram))
      return true;
  }
  return false;
}

SDENGINE_FUZZ(ngram_match, 20000) {
  const fuzz::NgramCase text(random);
  const fuzz::DraftTreeBuffers tree(text.batch, text.nodes);
  const Exact<int64_t> scratch(text.scratch_words());
  const NgramMatchArgs args = text.with(tree, scratch);
  for (int32_t b = 0; b < text.live[0]; ++b) {
    match_ngrams(args, b);
    const DraftTreeView drafted = tree.view.sequence(b);
    fuzz::require_draft_structure(drafted);
    require(*drafted.num_nodes <= std::max(text.budgets[b], 0), "node budget");
    for (int32_t i = 1; i <= *drafted.num_nodes; ++i) {
      require(drafted.depths[i] <= text.limits[b], "depth limit");
      if (drafted.parents[i] != 0) continue;
      const int32_t* own = args.history + b * args.history_stride;
      require(follows_a_match(own, text.lens[b], args.min_ngram, drafted.tokens[i]),
              "a token nobody wrote");
    }
  }
}

}  // namespace
