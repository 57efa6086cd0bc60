// Random texts of few words, and what may be drafted from them.
#pragma once

#include "sdengine/ngram_match.h"
#include "tree_buffers.h"

namespace fuzz {

struct NgramCase {
  explicit NgramCase(Random& random)
      : batch(random.integer(1, 3)),
        nodes(random.integer(0, 20)),
        stride(random.integer(0, random.chance(0.2f) ? 1500 : 60)),
        lens(batch),
        budgets(batch),
        limits(batch),
        stops(batch, -1),
        root_values(batch, 1.0f),
        live(1, random.integer(0, batch)),
        history(static_cast<size_t>(batch) * stride) {
    const bool has_words = stride > 60 || random.chance(0.3f);
    const int32_t vocab = has_words ? random.integer(30, 300) : random.integer(1, 6);
    for (size_t i = 0; i < history.size(); ++i) history[i] = random.integer(0, vocab - 1);
    for (int32_t b = 0; b < batch; ++b) {
      lens[b] = stride > 60 && random.chance(0.7f) ? stride : random.integer(0, stride);
      budgets[b] = random.integer(-1, nodes + 1);
      limits[b] = random.integer(-1, 9);
      if (random.chance(0.5f)) root_values[b] = random.unit();
      if (random.chance(0.3f)) stops[b] = random.integer(0, vocab - 1);
      if (has_words) repeat_end(random, history.get() + int64_t{b} * stride, lens[b]);
    }
    args.history = history.get();
    args.history_stride = stride;
    args.history_lens = lens.get();
    args.root_values = random.chance(0.5f) ? root_values.get() : nullptr;
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
  }

  // Lets the last tokens of a text of many words occur earlier, anywhere.
  static void repeat_end(Random& random, int32_t* text, int32_t length) {
    for (int32_t copies = random.integer(0, 2 + length / 30); copies > 0 && length > 20; --copies) {
      const int32_t count = random.integer(1, 6), at = random.integer(0, length - 2 * count);
      for (int32_t i = 0; i < count; ++i) text[at + i] = text[length - count + i];
    }
  }

  // The arguments with a tree and scratch of the caller's.
  sdengine::NgramMatchArgs with(const DraftTreeBuffers& tree, const Exact<int64_t>& scratch) const {
    sdengine::NgramMatchArgs complete = args;
    complete.tree = tree.view;
    complete.scratch = scratch.get();
    return complete;
  }

  size_t scratch_words() const {
    return static_cast<size_t>(batch *
                               sdengine::ngram_scratch_words(args.max_matches, args.max_depth));
  }

  int32_t batch, nodes, stride;
  Exact<int32_t> lens, budgets, limits, stops;
  Exact<float> root_values;
  Exact<int32_t> live, history;
  sdengine::NgramMatchArgs args{};
};

}  // namespace fuzz
