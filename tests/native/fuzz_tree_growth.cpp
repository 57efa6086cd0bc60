// tree_expand over random layers, then tree_select and build_rows: what one step does to its trees.
#include "growth_case.h"
#include "sdengine/build_rows.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Growth;
using fuzz::Random;
using fuzz::require;
using fuzz::Selection;

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
  select_grown(growth, chosen, thresholds);

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
                     true,
                     chosen.tree.view,
                     rows.view,
                     logit_rows.get(),
                     cu_logits.get(),
                     num_logits.get()};
  build_row_batch(args);
  require(*rows.view.num_rows <= capacity && num_logits[0] <= *rows.view.num_rows,
          "target rows fit");
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
