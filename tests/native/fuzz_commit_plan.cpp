// commit_plan on random walks: lengths, moves that never go upwards, histories that stay inside
// their rows.
#include <algorithm>

#include "fuzz.h"
#include "sdengine/commit_plan.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Random;
using fuzz::require;

void require_moves(const MovePlanView& plan) {
  for (int32_t j = 0; j < *plan.num_moves; ++j) {
    require(plan.source[j] >= *plan.dst_start + j, "a move goes upwards");
    require(j == 0 || plan.source[j] > plan.source[j - 1], "moves are in order");
  }
}

// An accepted path: nodes rise, and so do the draft slots of those that the draft has forwarded, a
// prefix of it.
void random_path(Random& random, int32_t count, int32_t num_nodes, int32_t* path, int32_t* slots) {
  int32_t slot = 0;
  bool is_forwarded = true;
  for (int32_t i = 0; i < count; ++i) {
    path[i] = random.integer(i ? path[i - 1] + 1 : 1, num_nodes - (count - 1 - i));
    is_forwarded = is_forwarded && random.chance(0.8f);
    if (is_forwarded) slots[path[i]] = slot += random.integer(1, 3);
  }
}

SDENGINE_FUZZ(commit_plan, 20000) {
  const int32_t depth = random.integer(0, 6), nodes = random.integer(depth, 20),
                room = random.integer(1, 12);
  Exact<int32_t> live(1, 1), wants(1, random.integer(0, 2)), accepted(1, 0), path(depth),
      out(depth + 1);
  Exact<int32_t> computed(1, random.integer(0, 9)), pending(1, random.integer(0, 3));
  const int32_t known = computed[0] + pending[0] + (wants[0] ? 0 : random.integer(0, 2));
  Exact<int32_t> lens(1, known), history(known + room, 3), emit(1, random.integer(0, depth + 2)),
      emitted(1);
  if (wants[0] != 0 && pending[0] > 0) accepted[0] = random.integer(0, depth);
  Exact<int32_t> slots(nodes + 1, -1);
  random_path(random, accepted[0], nodes, path.get(), slots.get());
  for (int32_t i = 0; i <= depth; ++i) out[i] = random.chance(0.05f) ? -1 : random.integer(0, 4);
  Exact<int32_t> source(depth), start(1), moves(1), draft_source(depth), draft_start(1),
      draft_moves(1), counts(5, 0);
  Exact<int32_t> draft_pending(1, random.integer(0, 3)), draft_computed(1, 0);
  draft_computed[0] =
      std::max(0, computed[0] + pending[0] - draft_pending[0] - (random.chance(0.2f) ? 1 : 0));
  CommitPlanArgs args{live.get(),
                      wants.get(),
                      pending.get(),
                      accepted.get(),
                      path.get(),
                      out.get(),
                      depth,
                      emit.get(),
                      emitted.get(),
                      history.get(),
                      static_cast<int64_t>(history.size()),
                      lens.get(),
                      computed.get(),
                      {source.get(), start.get(), moves.get(), depth},
                      random.chance(0.8f) ? slots.get() : nullptr,
                      nodes + 1,
                      draft_pending.get(),
                      draft_computed.get(),
                      {draft_source.get(), draft_start.get(), draft_moves.get(), depth},
                      random.chance(0.5f) ? counts.get() : nullptr,
                      5};
  commit_sequence(args, 0);
  require(emitted[0] >= 0 && emitted[0] <= accepted[0] + 1 && lens[0] == known + emitted[0],
          "emitted tokens");
  require(lens[0] <= static_cast<int32_t>(history.size()), "history stays in its row");
  require(computed[0] <= lens[0] && draft_computed[0] <= lens[0], "computed within known");
  require_moves(args.target_moves);
  require_moves(args.draft_moves);
}

}  // namespace
