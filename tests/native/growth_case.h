// A random batch of trees as one step grows and selects them; shared by the fuzz cases of tree ops.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "sdengine/tree_expand.h"
#include "sdengine/tree_select.h"
#include "tree_buffers.h"

namespace fuzz {

using namespace sdengine;

// Sizes and per-sequence settings of a random batch.
struct Growth {
  // `num_seqs`: of the batch, of small trees; 0: a few, at random.
  explicit Growth(Random& random, bool clean = false, int32_t num_seqs = 0)
      : is_clean(clean),
        batch(num_seqs > 0 ? num_seqs : random.integer(1, 4)),
        nodes(num_seqs > 0           ? random.integer(0, 6)
              : random.chance(0.05f) ? 512
                                     : random.integer(0, 24)),
        candidates(random.chance(0.3f) ? random.integer(8, 20) : random.integer(1, 7)),
        width(random.integer(1, 9)),
        layers(random.integer(1, 5)),
        block_size(1 << random.integer(0, 5)),
        max_blocks(random.integer(1, 12)),
        live(1, random.integer(0, batch)),
        starts(batch, 0),
        budgets(batch, 0),
        total(1, random.integer(-1, batch * nodes + 1)),
        limits(batch, 0),
        stops(batch * size_t{2}, -1),
        gain(1, random.chance(0.8f) ? 0.0f : random.unit()),
        calibration(batch * size_t{kCalibrationCells}, 0.0f),
        root_values(batch, 1.0f),
        tables(batch * static_cast<size_t>(max_blocks), 0),
        tree(batch, nodes),
        rows(batch, batch * width, random.integer(1, 2)),
        node_slots(batch * static_cast<size_t>(width), -1),
        store_tokens(static_cast<size_t>(layers) * batch * width * candidates, -1),
        store_probs(store_tokens.size(), 0.0f),
        keys(std::max<size_t>(batch * static_cast<size_t>(nodes), nodes + width * candidates)),
        buffer(batch * static_cast<size_t>(nodes)),
        prices(random.integer(1, 2 * nodes + 1), 0.0f),
        pending(batch + 1, random.integer(0, 3)),
        scratch(static_cast<size_t>(width) * candidates),
        remap(nodes + (plant() == Plant::kShortBuffer ? 0 : 1)) {
    for (int32_t b = 0; b < batch; ++b) {
      starts[b] = random.integer(0, max_blocks * block_size);
      budgets[b] = random.integer(-1, nodes + 2);
      limits[b] = random.integer(0, layers + 1);
      if (random.chance(0.5f)) root_values[b] = 2.0f * random.unit();
      stops[2 * b] = random.integer(-1, 3);
    }
    const float most = random.unit();
    for (size_t i = 0; i < prices.size(); ++i)
      prices[i] = random.chance(0.01f) ? NAN : most * random.integer(0, 3) / 3.0f;
    for (size_t i = 0; i < calibration.size(); ++i)
      calibration[i] = random.chance(0.01f) ? NAN : random.unit();
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
  }

  bool is_clean;
  int32_t batch, nodes, candidates, width, layers, block_size, max_blocks;
  Exact<int32_t> live, starts, budgets, total, limits, stops;
  Exact<float> gain, calibration, root_values;
  Exact<int32_t> tables;
  DraftTreeBuffers tree;
  RowBatchBuffers rows;
  Exact<int32_t> node_slots, store_tokens;
  Exact<float> store_probs;
  Exact<uint64_t> keys, buffer;
  Exact<float> prices;
  Exact<int32_t> pending;
  Exact<Candidate> scratch;
  Exact<int32_t> remap;
};

inline float random_probability(Random& random) {
  if (random.chance(0.95f)) return random.unit();
  const float odd[] = {0.0f, -1.0f,  NAN,   std::numeric_limits<float>::infinity(),
                       1.0f, 1e-30f, 1e-42f};
  return odd[random.integer(0, 6)];
}

// A row of candidates: a proposal as the draft draws it, or, when not `is_clean`, anything at all.
inline void propose(const Growth& growth, Random& random, int32_t* tokens, float* probs) {
  const int32_t shift = random.integer(0, growth.candidates - 1);
  float sum = 0.0f;
  for (int32_t j = 0; j < growth.candidates; ++j) {
    tokens[j] = (j + shift) % growth.candidates;
    probs[j] = growth.is_clean ? random.unit() * random.unit() + 1e-6f : random_probability(random);
    if (!growth.is_clean && random.chance(0.02f)) tokens[j] = -1;
    sum += probs[j];
  }
  for (int32_t j = 0; growth.is_clean && j < growth.candidates; ++j) probs[j] /= sum;
}

inline TreeExpandArgs expand_args(Growth& growth, Random& random) {
  TreeExpandArgs args{};
  args.rule = growth.is_clean ? ExpandRule::kSlot : static_cast<ExpandRule>(random.integer(0, 3));
  args.max_children = random.integer(1, 8);
  args.max_width = growth.width;
  args.num_candidates = growth.candidates;
  args.num_stop_tokens = 2;
  args.batch_size = growth.batch;
  args.tree = growth.tree.view;
  args.tree_starts = growth.starts.get();
  args.node_budgets = growth.budgets.get();
  args.total_budget = growth.total.get();
  args.depth_limits = growth.limits.get();
  args.stop_tokens = growth.stops.get();
  args.calibration = random.chance(0.5f) ? growth.calibration.get() : nullptr;
  args.root_values = random.chance(0.5f) ? growth.root_values.get() : nullptr;
  args.min_layer_gain = growth.gain.get();
  args.num_seqs = growth.live.get();
  args.tables = {growth.tables.get(), growth.max_blocks, growth.block_size};
  args.rows = growth.rows.view;
  args.node_slots = growth.node_slots.get();
  if (random.chance(0.5f)) {
    args.row_prices = growth.prices.get();
    args.num_prices = static_cast<int32_t>(growth.prices.size());
    args.cu_pending = growth.pending.get();
  }
  args.keys = growth.keys.get();
  args.buffer = growth.buffer.get();
  args.candidates = growth.scratch.get();
  args.remap = growth.remap.get();
  return args;
}

inline void require_rows(const Growth& growth) {
  const RowBatchView& rows = growth.rows.view;
  require(*rows.num_rows <= rows.capacity, "rows fit");
  for (int32_t b = 0; b < growth.live[0]; ++b) {
    const DraftTreeView tree = growth.tree.view.sequence(b);
    require(rows.cu_rows[b + 1] - rows.cu_rows[b] <= growth.width, "width cap");
    for (int32_t row = rows.cu_rows[b]; row < rows.cu_rows[b + 1]; ++row) {
      const int32_t slot = tree.draft_slots[rows.row_node[row]];
      require(slot >= 1 && slot <= 64 * rows.mask_words, "draft slot");
      require(growth.node_slots[row] == slot, "node slot");
      const uint64_t word =
          rows.ancestor_mask[static_cast<int64_t>(row) * rows.mask_words + (slot - 1) / 64];
      require(word >> ((slot - 1) % 64) & 1, "a row sees itself");
      require(rows.slots[row] < growth.batch * growth.max_blocks * growth.block_size,
              "physical slot");
    }
  }
}

// Runs all layers with `expand`; every layer has candidate tensors of exactly its rows.
template <class Expand>
inline void grow(Growth& growth, Random& random, Expand expand) {
  TreeExpandArgs args = expand_args(growth, random);
  Exact<int32_t> roots(growth.batch + 1, 0);
  for (int32_t b = 0; b < growth.live[0]; ++b)
    roots[b + 1] = roots[b] + (random.chance(0.9f) ? 1 : 0);
  for (args.layer = 0; args.layer < growth.layers; ++args.layer) {
    const RowBatchView& rows = growth.rows.view;
    const bool is_first = args.layer == 0;
    const int32_t count = is_first ? roots[growth.live[0]] : *rows.num_rows;
    Exact<int32_t> tokens(static_cast<size_t>(count) * growth.candidates);
    Exact<float> probs(tokens.size());
    args.proposal_offset = args.layer * growth.batch * growth.width;
    for (int32_t row = 0; row < count; ++row) {
      const size_t at = static_cast<size_t>(row) * growth.candidates;
      const size_t stored = at + static_cast<size_t>(args.proposal_offset) * growth.candidates;
      propose(growth, random, tokens.get() + at, probs.get() + at);
      std::copy_n(tokens.get() + at, growth.candidates, growth.store_tokens.get() + stored);
      std::copy_n(probs.get() + at, growth.candidates, growth.store_probs.get() + stored);
    }
    args.candidate_tokens = tokens.get();
    args.candidate_probs = probs.get();
    args.cu_rows = is_first ? roots.get() : rows.cu_rows;
    args.frontier_nodes = is_first ? nullptr : rows.row_node;
    expand(args);
    int32_t total = 0;
    for (int32_t b = 0; b < growth.live[0]; ++b) {
      require_draft_structure(growth.tree.view.sequence(b));
      require(growth.tree.view.num_nodes[b] <= std::max(growth.budgets[b], 0), "node budget");
      total += growth.tree.view.num_nodes[b];
    }
    require(total <= std::max(growth.total[0], 0), "total budget");
    require_rows(growth);
  }
}

inline void grow(Growth& growth, Random& random) { grow(growth, random, expand_layer); }

// A target batch on top of the grown trees.
struct Selection {
  Selection(const Growth& growth, Random& random)
      : pending(growth.batch + 1, 0),
        computed(growth.batch, 0),
        wants(growth.batch, 0),
        total(1, random.integer(-1, growth.nodes)),
        tree(growth.batch, growth.nodes),
        keys(growth.batch * static_cast<size_t>(growth.nodes)),
        buffer(keys.size()),
        sizes(growth.nodes + 1),
        places(growth.nodes + 1),
        next(growth.nodes + 1) {
    for (int32_t b = 0; b < growth.batch; ++b) {
      pending[b + 1] = pending[b] + random.integer(0, 3);
      computed[b] = random.integer(0, 9);
      wants[b] = random.integer(0, 2);
    }
  }
  Exact<int32_t> pending, computed, wants, total;
  TokenTreeBuffers tree;
  Exact<uint64_t> keys, buffer;
  Exact<int32_t> sizes, places, next;
};

template <class Select>
inline void select_grown(const Growth& growth, Selection& chosen, const Exact<float>& thresholds,
                         Select select) {
  TreeSelectArgs args{};
  args.draft = growth.tree.view;
  args.thresholds = thresholds.get();
  args.max_rows = static_cast<int32_t>(thresholds.size());
  args.cu_pending = chosen.pending.get();
  args.num_seqs = growth.live.get();
  args.total_budget = chosen.total[0] % 3 == 0 ? nullptr : chosen.total.get();
  args.batch_size = growth.batch;
  args.tree = chosen.tree.view;
  args.keys = chosen.keys.get();
  args.buffer = chosen.buffer.get();
  args.sizes = chosen.sizes.get();
  args.places = chosen.places.get();
  args.next = chosen.next.get();
  select(args);
  int32_t taken = 0;
  for (int32_t b = 0; b < growth.live[0]; ++b) taken += chosen.tree.view.num_nodes[b];
  if (args.total_budget != nullptr)
    require(taken <= std::max(chosen.total[0], 0), "total budget of the choice");
  if (plant() == Plant::kWrongTree && *chosen.tree.view.num_nodes > 1)
    chosen.tree.view.parents[2] = 2;
  for (int32_t b = 0; b < growth.live[0]; ++b)
    require_token_structure(chosen.tree.view.sequence(b));
}

inline void select_grown(const Growth& growth, Selection& chosen, const Exact<float>& thresholds) {
  select_grown(growth, chosen, thresholds, select_trees);
}

}  // namespace fuzz
