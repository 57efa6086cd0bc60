// The children that a layer's rows propose (expand::propose_children), by a block.
//
// Everything that a candidate is by itself is found by a thread for each; only products along a
// row's siblings are one thread's work. By rule "slot" with a table, a value needs the mean
// acceptance of all candidates that are left: 64 candidates and 16 children come to 904 look-ups a
// row, some 200 us on one thread (estimated). There kLanesPerSum threads look them up side by side,
// and each adds all of them in the serial order, which keeps the bits.
#pragma once

#include "cuda/tree_expand.cuh"

namespace sdengine {

constexpr int32_t kLanesPerSum = 8;

// The rows of one sequence's layer. Until a child is valued, its place holds what is known of it:
// `estimate`, its acceptance as `reach`, and as `value` the mass that is left before it, then the
// acceptance that a draw from that can expect.
struct LayerRows {
  const TreeExpandArgs& args;
  const GrowArrays& arrays;
  int64_t b;
  DraftTreeView tree;
  int32_t num_rows, limit;
  float floor;

  __device__ int32_t row(int32_t r) const { return args.cu_rows[b] + r; }
  __device__ int32_t node(int32_t r) const {
    return args.frontier_nodes ? args.frontier_nodes[row(r)] : 0;
  }
  __device__ int32_t base(int32_t r) const { return row(r) * args.num_candidates; }
  __device__ Candidate* children(int32_t r) const {
    return arrays.candidates + r * most_children(args);
  }
};

__device__ inline void note_offers(const Block& block, const LayerRows& rows) {
  const TreeExpandArgs& args = rows.args;
  for (int32_t r = block.rank(); r < rows.num_rows; r += block.size())
    expand::note_remaining(args, args.candidate_probs + rows.base(r), rows.limit, rows.children(r));
  block.sync();
  for (int32_t at = block.rank(); at < rows.num_rows * rows.limit; at += block.size()) {
    const int32_t r = at / rows.limit, j = at % rows.limit;
    Candidate& child = rows.children(r)[j];
    const float remaining = child.estimate;
    const expand::Offer offer = expand::offer_of(args, rows.b, rows.base(r) + j, j, remaining);
    child.value = remaining;
    child.reach = offer.acceptance;
    child.estimate = offer.estimate;
  }
  block.sync();
}

// Children of a row whose value can still ask for an expectation: it never exceeds their chance.
__device__ inline int32_t count_asking(const LayerRows& rows, int32_t r) {
  const Candidate* children = rows.children(r);
  float chance = rows.tree.reach[rows.node(r)];
  int32_t j = 0;
  for (; j < rows.limit && chance > rows.floor && children[j].reach >= 0.0f; ++j)
    chance = chance * (1.0f - children[j].reach);
  return j;
}

// expand::expected_acceptance of child j of row r, by kLanesPerSum lanes side by side; the others
// of the warp come along with `is_asked` false.
__device__ inline float expect_draw(const LayerRows& rows, int32_t r, int32_t j, bool is_asked) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const int32_t begin = lane - lane % kLanesPerSum;
  const float* probs = rows.args.candidate_probs + (is_asked ? rows.base(r) : 0);
  const float remaining = is_asked ? rows.children(r)[j].value : 1.0f;
  const float* table = expand::rank_table(rows.args.calibration, rows.b, j);
  float expected = 0.0f;
  for (int32_t top = rows.args.num_candidates - 1; top >= 0; top -= kLanesPerSum) {
    const int32_t i = top - lane % kLanesPerSum;
    const bool is_left = is_asked && i >= j;
    const float own = is_left ? expand::expected_term(probs[i], remaining, table) : 0.0f;
    for (int32_t k = 0; k < kLanesPerSum; ++k) {
      const float term = __shfl_sync(kWholeWarp, own, begin + k);
      if (top - k >= j) expected += term;
    }
  }
  return min_of(expected, 1.0f);
}

__device__ inline void note_expectations(const Block& block, const LayerRows& rows) {
  for (int32_t r = block.rank(); r < rows.num_rows; r += block.size())
    rows.arrays.counts[r] = count_asking(rows, r);
  block.sync();
  const int32_t slots = rows.num_rows * rows.limit;
  for (int32_t first = 0; first < slots; first += block.size() / kLanesPerSum) {
    const int32_t at = first + block.rank() / kLanesPerSum;
    const int32_t r = at < slots ? at / rows.limit : 0, j = at < slots ? at % rows.limit : 0;
    const bool is_asked = at < slots && j < rows.arrays.counts[r];
    if (!__any_sync(kWholeWarp, is_asked)) continue;
    const float expected = expect_draw(rows, r, j, is_asked);
    if (is_asked && block.rank() % kLanesPerSum == 0) rows.children(r)[j].value = expected;
  }
  block.sync();
}

// Proposes the children of every row; returns how many there are in all.
__device__ inline int32_t propose_rows(const Block& block, const LayerRows& rows) {
  const TreeExpandArgs& args = rows.args;
  note_offers(block, rows);
  if (expand::needs_expectations(args)) note_expectations(block, rows);
  int32_t proposed = 0;
  for (int32_t r = block.rank(); r < rows.num_rows; r += block.size()) {
    const int32_t node = rows.node(r);
    rows.tree.proposal_rows[node] = args.proposal_offset + rows.row(r);
    Candidate* out = rows.children(r);
    rows.arrays.counts[r] = expand::value_children(
        args, rows.tree, node, rows.base(r), rows.limit, rows.floor,
        [=](int32_t j) { return expand::Offer{out[j].estimate, out[j].reach}; },
        [=](int32_t j) { return out[j].value; }, out);
    proposed += rows.arrays.counts[r];
  }
  return block.sum(proposed);
}

}  // namespace sdengine
