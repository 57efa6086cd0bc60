// ngram_match on random texts: structure, budgets, and that every proposed path follows an earlier
// occurrence.
#include <algorithm>

#include "sdengine/ngram_match.h"
#include "tree_buffers.h"

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
  const int32_t batch = random.integer(1, 3), nodes = random.integer(0, 20);
  const int32_t stride = random.integer(0, random.chance(0.1f) ? 400 : 60);
  const int32_t vocab = random.integer(1, 6);
  Exact<int32_t> lens(batch), budgets(batch), limits(batch), stops(batch, -1),
      live(1, random.integer(0, batch));
  Exact<int32_t> history(static_cast<size_t>(batch) * stride);
  for (size_t i = 0; i < history.size(); ++i) history[i] = random.integer(0, vocab - 1);
  for (int32_t b = 0; b < batch; ++b) {
    lens[b] = random.integer(0, stride);
    budgets[b] = random.integer(-1, nodes + 1);
    limits[b] = random.integer(-1, 9);
    if (random.chance(0.3f)) stops[b] = random.integer(0, vocab - 1);
  }
  fuzz::DraftTreeBuffers tree(batch, nodes);
  NgramMatchArgs args{};
  args.history = history.get();
  args.history_stride = stride;
  args.history_lens = lens.get();
  args.node_budgets = budgets.get();
  args.depth_limits = limits.get();
  args.stop_tokens = stops.get();
  args.num_seqs = live.get();
  args.num_stop_tokens = 1;
  args.min_ngram = random.integer(1, 4);
  args.max_ngram = args.min_ngram + random.integer(0, 12);
  args.max_matches = random.integer(1, 12);
  args.max_depth = random.integer(1, 8);
  args.max_children = random.integer(1, 5);
  args.tree = tree.view;
  Exact<int64_t> scratch(batch * ngram_scratch_words(args.max_matches, args.max_depth));
  args.scratch = scratch.get();
  for (int32_t b = 0; b < live[0]; ++b) {
    match_ngrams(args, b);
    const DraftTreeView drafted = tree.view.sequence(b);
    fuzz::require_draft_structure(drafted);
    require(*drafted.num_nodes <= std::max(budgets[b], 0), "node budget");
    for (int32_t i = 1; i <= *drafted.num_nodes; ++i) {
      require(drafted.depths[i] <= limits[b], "depth limit");
      if (drafted.parents[i] != 0) continue;
      const int32_t* text = history.get() + static_cast<int64_t>(b) * stride;
      require(follows_a_match(text, lens[b], args.min_ngram, drafted.tokens[i]),
              "a token nobody wrote");
    }
  }
}

}  // namespace
