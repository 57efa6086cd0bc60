// tree_expand over random layers, then tree_select, build_rows and the coupled walk: what one step
// does to its trees.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sdengine/build_rows.h"
#include "sdengine/tree_expand.h"
#include "sdengine/tree_select.h"
#include "sdengine/tree_verify.h"
#include "tree_buffers.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Random;
using fuzz::require;

// Sizes and per-sequence settings of a random batch.
struct Growth {
  explicit Growth(Random& random)
      : batch(random.integer(1, 4)),
        nodes(random.chance(0.05f) ? 512 : random.integer(0, 24)),
        candidates(random.integer(1, 7)),
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
        calibration(batch * size_t{kCalibrationBins}, 0.0f),
        tables(batch * static_cast<size_t>(max_blocks), 0),
        tree(batch, nodes),
        rows(batch, batch * width, random.integer(1, 2)),
        creation_ids(batch * static_cast<size_t>(width), -1),
        keys(std::max<size_t>(batch * static_cast<size_t>(nodes), nodes + width * candidates)),
        scratch(static_cast<size_t>(width) * candidates),
        remap(nodes + (fuzz::plant() == fuzz::Plant::kShortBuffer ? 0 : 1)) {
    for (int32_t b = 0; b < batch; ++b) {
      starts[b] = random.integer(0, max_blocks * block_size);
      budgets[b] = random.integer(-1, nodes + 2);
      limits[b] = random.integer(0, layers + 1);
      stops[2 * b] = random.integer(-1, 3);
    }
    for (size_t i = 0; i < calibration.size(); ++i)
      calibration[i] = random.chance(0.01f) ? NAN : random.unit();
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
  }

  int32_t batch, nodes, candidates, width, layers, block_size, max_blocks;
  Exact<int32_t> live, starts, budgets, total, limits, stops;
  Exact<float> gain, calibration;
  Exact<int32_t> tables;
  fuzz::DraftTreeBuffers tree;
  fuzz::RowBatchBuffers rows;
  Exact<int32_t> creation_ids;
  Exact<uint64_t> keys;
  Exact<Candidate> scratch;
  Exact<int32_t> remap;
};

float random_probability(Random& random) {
  if (random.chance(0.95f)) return random.unit();
  const float odd[] = {0.0f, -1.0f,  NAN,   std::numeric_limits<float>::infinity(),
                       1.0f, 1e-30f, 1e-42f};
  return odd[random.integer(0, 6)];
}

TreeExpandArgs expand_args(Growth& growth, Random& random) {
  TreeExpandArgs args{};
  args.rule = static_cast<ExpandRule>(random.integer(0, 3));
  args.max_children = random.integer(1, 8);
  args.max_width = growth.width;
  args.window = random.chance(0.3f) ? random.integer(1, 3) : 0;
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
  args.min_layer_gain = growth.gain.get();
  args.num_seqs = growth.live.get();
  args.tables = {growth.tables.get(), growth.max_blocks, growth.block_size};
  args.rows = growth.rows.view;
  args.creation_ids = growth.creation_ids.get();
  args.keys = growth.keys.get();
  args.candidates = growth.scratch.get();
  args.remap = growth.remap.get();
  return args;
}

void require_rows(const Growth& growth) {
  const RowBatchView& rows = growth.rows.view;
  require(*rows.num_rows <= rows.capacity, "rows fit");
  for (int32_t b = 0; b < growth.live[0]; ++b) {
    const DraftTreeView tree = growth.tree.view.sequence(b);
    require(rows.cu_rows[b + 1] - rows.cu_rows[b] <= growth.width, "width cap");
    for (int32_t row = rows.cu_rows[b]; row < rows.cu_rows[b + 1]; ++row) {
      const int32_t slot = tree.draft_slots[rows.row_node[row]];
      require(slot >= 1 && slot <= 64 * rows.mask_words, "draft slot");
      require(growth.creation_ids[row] == slot, "creation id");
      const uint64_t word =
          rows.ancestor_mask[static_cast<int64_t>(row) * rows.mask_words + (slot - 1) / 64];
      require(word >> ((slot - 1) % 64) & 1, "a row sees itself");
      require(rows.slots[row] < growth.batch * growth.max_blocks * growth.block_size,
              "physical slot");
    }
  }
}

// Runs all layers; every layer has candidate tensors of exactly its rows.
void grow(Growth& growth, Random& random) {
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
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(i % growth.candidates) - (random.chance(0.02f) ? 100 : 0);
      probs[i] = random_probability(random);
    }
    args.candidate_tokens = tokens.get();
    args.candidate_probs = probs.get();
    args.cu_rows = is_first ? roots.get() : rows.cu_rows;
    args.frontier_nodes = is_first ? nullptr : rows.row_node;
    expand_layer(args);
    int32_t total = 0;
    for (int32_t b = 0; b < growth.live[0]; ++b) {
      fuzz::require_draft_structure(growth.tree.view.sequence(b));
      require(growth.tree.view.num_nodes[b] <= std::max(growth.budgets[b], 0), "node budget");
      total += growth.tree.view.num_nodes[b];
    }
    require(total <= std::max(growth.total[0], 0), "total budget");
    require_rows(growth);
  }
}

// A target batch on top of the grown trees.
struct Selection {
  Selection(const Growth& growth, Random& random)
      : pending(growth.batch + 1, 0),
        computed(growth.batch, 0),
        wants(growth.batch, 0),
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
  Exact<int32_t> pending, computed, wants;
  fuzz::TokenTreeBuffers tree;
  Exact<uint64_t> keys, buffer;
  Exact<int32_t> sizes, places, next;
};

void select(const Growth& growth, Selection& chosen, const Exact<float>& thresholds) {
  TreeSelectArgs args{};
  args.draft = growth.tree.view;
  args.thresholds = thresholds.get();
  args.max_rows = static_cast<int32_t>(thresholds.size());
  args.cu_pending = chosen.pending.get();
  args.num_seqs = growth.live.get();
  args.batch_size = growth.batch;
  args.tree = chosen.tree.view;
  args.keys = chosen.keys.get();
  args.buffer = chosen.buffer.get();
  args.sizes = chosen.sizes.get();
  args.places = chosen.places.get();
  args.next = chosen.next.get();
  select_trees(args);
  if (fuzz::plant() == fuzz::Plant::kWrongTree && *chosen.tree.view.num_nodes > 1)
    chosen.tree.view.parents[2] = 2;
  for (int32_t b = 0; b < growth.live[0]; ++b)
    fuzz::require_token_structure(chosen.tree.view.sequence(b));
}

void walk(const Growth& growth, const Selection& chosen, const int32_t* cu_logits, Random& random) {
  for (int32_t b = 0; b < growth.live[0]; ++b) {
    const TokenTreeView tree = chosen.tree.view.sequence(b);
    Exact<int32_t> targets(std::max(cu_logits[b + 1] - cu_logits[b], 1), 0);
    for (size_t i = 0; i < targets.size(); ++i) targets[i] = random.integer(-1, growth.candidates);
    const bool is_root_only = cu_logits[b + 1] - cu_logits[b] < *tree.num_nodes + 1;
    const int32_t depth = random.integer(0, growth.layers);
    Exact<int32_t> path(depth), out(depth + 1), tried(kCalibrationBins), accepted(kCalibrationBins);
    const WalkEnd end = walk_coupled(tree, targets.get(), is_root_only,
                                     {path.get(), out.get(), depth, tried.get(), accepted.get()});
    require(end.num_accepted <= depth, "accepted within the depth");
    for (int32_t i = 0; i < end.num_accepted; ++i) {
      require(tree.parents[path[i]] == (i ? path[i - 1] : 0) && tree.tokens[path[i]] == out[i],
              "path is a chain");
    }
  }
}

SDENGINE_FUZZ(tree_growth, 20000) {
  Growth growth(random);
  grow(growth, random);
  Selection chosen(growth, random);
  int32_t total = chosen.pending[growth.live[0]];
  for (int32_t b = 0; b < growth.live[0]; ++b) total += growth.tree.view.num_nodes[b];
  const int32_t base = chosen.pending[growth.batch];
  Exact<float> thresholds(std::max(base, total + random.integer(-3, 3)), 0.0f);
  const float scale = random.chance(0.5f) ? 0.0f : random.unit();
  for (size_t i = 0; i < thresholds.size(); ++i)
    thresholds[i] = random.chance(0.01f) ? NAN : scale * random.unit();
  select(growth, chosen, thresholds);

  const int32_t capacity = static_cast<int32_t>(thresholds.size());
  const int32_t reach = (9 + 3 + growth.nodes) / growth.block_size + 1;
  Exact<int32_t> tokens(chosen.pending[growth.batch], 5),
      tables(growth.batch * static_cast<size_t>(reach), 1);
  Exact<int32_t> logit_rows(capacity), cu_logits(growth.batch + 1), num_logits(1);
  fuzz::RowBatchBuffers rows(growth.batch, capacity, chosen.tree.words + random.integer(0, 1));
  BuildRowsArgs args{tokens.get(),
                     chosen.pending.get(),
                     chosen.computed.get(),
                     chosen.wants.get(),
                     growth.live.get(),
                     {tables.get(), reach, growth.block_size},
                     random.chance(0.3f) ? 2 : 0,
                     true,
                     chosen.tree.view,
                     rows.view,
                     logit_rows.get(),
                     cu_logits.get(),
                     num_logits.get()};
  build_row_batch(args);
  require(*rows.view.num_rows <= capacity && num_logits[0] <= *rows.view.num_rows,
          "target rows fit");
  walk(growth, chosen, cu_logits.get(), random);
}

SDENGINE_FUZZ(selection_of_keys, 10000) {
  const int32_t count = random.integer(1, random.chance(0.1f) ? 900 : 40);
  Exact<uint64_t> keys(count), sorted(count), buffer(count);
  for (int32_t i = 0; i < count; ++i)
    keys[i] = sorted[i] = rank_key(random.integer(0, 5) / 5.0f, i);
  sort_descending(sorted.get(), buffer.get(), count);
  require(std::is_sorted(sorted.get(), sorted.get() + count, std::greater<uint64_t>()), "sorted");
  const int32_t k = random.integer(1, count);
  require(nth_largest(keys.get(), count, k) == sorted[k - 1], "k-th largest");
}

SDENGINE_FUZZ(planted_overflow, 1) {
  volatile int32_t large = std::numeric_limits<int32_t>::max();
  if (fuzz::plant() == fuzz::Plant::kOverflow) large = large + random.integer(1, 2);
}

}  // namespace
