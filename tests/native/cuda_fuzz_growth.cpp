// The device's tree_expand and tree_select against the serial ones, on the same random batches.
#include <cstdlib>
#include <utility>

#include "cuda/tree_expand.cuh"
#include "cuda_entry_points.h"
#include "cuda_runtime.h"
#include "growth_case.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Growth;
using fuzz::Random;
using fuzz::require;
using fuzz::Selection;

// The op's scratch tensor in exactly the size that the device needs.
void expand_on_device(TreeExpandArgs args) {
  const bool is_shared = cuda_on_threads::max_shared_bytes() > 0;
  const int64_t told = args.tree.capacity + (args.tree.capacity + 1) / 2 + args.max_width + 2;
  const int64_t words = told + (is_shared ? 0 : grow_words(args));
  Exact<uint64_t> scratch(static_cast<size_t>(args.batch_size * words), 0xdeadbeefdeadbeefull);
  args.scratch = scratch.get();
  args.keys = args.buffer = nullptr;
  args.candidates = nullptr;
  args.remap = nullptr;
  require(sdengine_cuda_tree_expand(&args, args.batch_size, nullptr) == 0, "tree_expand starts");
}

void select_on_device(TreeSelectArgs args) {
  const int64_t words = int64_t{args.batch_size} * (args.draft.capacity + 1);
  Exact<uint64_t> scratch(static_cast<size_t>(words), 0xdeadbeefdeadbeefull);
  args.scratch = scratch.get();
  args.keys = args.buffer = nullptr;
  args.sizes = args.places = args.next = nullptr;
  require(sdengine_cuda_tree_select(&args, args.batch_size, nullptr) == 0, "tree_select starts");
}

template <class T>
bool same(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

void require_same_trees(const DraftTreeView& a, const DraftTreeView& b, int32_t live) {
  require(same(a.num_nodes, b.num_nodes, live), "num_nodes");
  require(same(a.num_forwarded, b.num_forwarded, live), "num_forwarded");
  for (int32_t s = 0; s < live; ++s) {
    const DraftTreeView x = a.sequence(s), y = b.sequence(s);
    const int32_t n = *x.num_nodes + 1;
    require(same(x.tokens, y.tokens, n) && same(x.parents, y.parents, n), "tokens and parents");
    require(same(x.depths, y.depths, n) && same(x.ranks, y.ranks, n), "depths and ranks");
    require(same(x.values, y.values, n) && same(x.reach, y.reach, n), "values and reach");
    require(same(x.estimates, y.estimates, n) && same(x.probs, y.probs, n), "estimates and probs");
    require(same(x.draft_slots, y.draft_slots, n), "draft slots");
    require(same(x.proposal_rows, y.proposal_rows, n), "proposal rows");
  }
}

void require_same_rows(const RowBatchView& a, const RowBatchView& b, int32_t live) {
  require(*a.num_rows == *b.num_rows, "num_rows");
  require(same(a.cu_rows, b.cu_rows, live + 1), "cu_rows");
  require(same(a.tree_starts, b.tree_starts, live), "tree_starts");
  const int64_t n = *a.num_rows;
  require(same(a.tokens, b.tokens, n) && same(a.positions, b.positions, n), "tokens, positions");
  require(same(a.slots, b.slots, n) && same(a.row_seq, b.row_seq, n), "slots, row_seq");
  require(same(a.row_node, b.row_node, n), "row_node");
  require(same(a.visible_lens, b.visible_lens, n), "visible_lens");
  require(same(a.ancestor_mask, b.ancestor_mask, n * a.mask_words), "row masks");
}

void require_same_tokens(const TokenTreeView& a, const TokenTreeView& b, int32_t live) {
  require(same(a.num_nodes, b.num_nodes, live), "selected nodes");
  for (int32_t s = 0; s < live; ++s) {
    const TokenTreeView x = a.sequence(s), y = b.sequence(s);
    const int32_t n = *x.num_nodes + 1;
    require(same(x.tokens, y.tokens, n) && same(x.parents, y.parents, n), "selected tokens");
    require(same(x.depths, y.depths, n), "selected depths");
    require(same(x.first_child, y.first_child, n), "first_child");
    require(same(x.next_sibling, y.next_sibling, n), "next_sibling");
    require(same(x.draft_slots, y.draft_slots, n), "selected draft slots");
    require(same(x.proposal_rows, y.proposal_rows, n), "selected proposal rows");
    require(same(x.creation_ids, y.creation_ids, n), "creation_ids");
    require(same(x.estimates, y.estimates, n) && same(x.probs, y.probs, n), "selected floats");
    require(same(x.reach, y.reach, n), "selected reach");
    require(same(x.ancestor_mask, y.ancestor_mask, int64_t{n} * x.mask_words), "ancestor masks");
  }
}

// Layers, then a choice of them: both sides draw the same random numbers as long as they agree.
void grow_and_select(Random& random, int32_t num_seqs = 0) {
  Random twin = random;
  const bool is_clean = random.chance(0.3f);
  (void)twin.chance(0.3f);
  Growth serial(random, is_clean, num_seqs), device(twin, is_clean, num_seqs);
  grow(serial, random);
  grow(device, twin, expand_on_device);
  require(random.bits() == twin.bits(), "the same layers");
  const int32_t live = serial.live[0];
  require_same_trees(serial.tree.view, device.tree.view, live);
  require_same_rows(serial.rows.view, device.rows.view, live);

  Selection chosen(serial, random), twin_chosen(device, twin);
  const int32_t base = chosen.pending[serial.batch];
  int32_t total = chosen.pending[live];
  for (int32_t b = 0; b < live; ++b) total += serial.tree.view.num_nodes[b];
  Exact<float> thresholds(std::max(base, total + random.integer(-3, 3)), 0.0f);
  const float scale = random.chance(0.4f) ? 0.0f : random.unit();
  for (size_t i = 0; i < thresholds.size(); ++i)
    thresholds[i] = random.chance(0.01f) ? NAN : scale * random.unit();
  select_grown(serial, chosen, thresholds);
  select_grown(device, twin_chosen, thresholds, select_on_device);
  require_same_tokens(chosen.tree.view, twin_chosen.tree.view, live);
}

SDENGINE_FUZZ(cuda_tree_growth, 12) { grow_and_select(random); }

// More sequences than a block has threads.
SDENGINE_FUZZ(cuda_growth_of_many, 3) { grow_and_select(random, random.integer(33, 70)); }

// What grows with the tree does not fit into shared memory, and lies in scratch.
SDENGINE_FUZZ(cuda_growth_in_scratch, 12) {
  const int usual = std::exchange(cuda_on_threads::max_shared_bytes(), 0);
  grow_and_select(random);
  cuda_on_threads::max_shared_bytes() = usual;
}

}  // namespace
