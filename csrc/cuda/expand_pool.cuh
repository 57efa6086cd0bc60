// What the whole batch decides for each of its trees while they grow: its cut, and the ranks that
// price the next layer. Every block of tree_expand's trim finds the cut for itself, from the keys
// that grow left; each ranks its own sequence's nodes.
#pragma once

#include "cuda/tree_expand.cuh"

namespace sdengine {

// Keys of the batch in shared memory at a time; tests have room for few, to see what does not fit.
#if !defined(SDENGINE_MAX_POOLED_KEYS)
#define SDENGINE_MAX_POOLED_KEYS 4096
#endif
constexpr int64_t kMaxPooledKeys = SDENGINE_MAX_POOLED_KEYS;

struct TrimSpace {
  SDE_HD TrimSpace(unsigned char* base, const TreeExpandArgs& args) : layout(base) {
    select = layout.take<SelectSpace>(1);
    pooled = layout.take<uint64_t>(pooled_capacity(args));
    promise_keys = layout.take<uint64_t>(args.tree.capacity);
    starts = layout.take<int32_t>(args.batch_size);
    remap = layout.take<int32_t>(args.tree.capacity + 1);
    words = layout.take<uint32_t>(kMaxWarps);
  }
  SDE_HD static int64_t pooled_capacity(const TreeExpandArgs& args) {
    const int64_t all = int64_t{args.batch_size} * args.tree.capacity;
    return all < kMaxPooledKeys ? all : kMaxPooledKeys;
  }
  SharedLayout layout;
  SelectSpace* select;
  uint64_t* pooled;        // keys of the batch, side by side
  uint64_t* promise_keys;  // [T]
  int32_t* starts;         // [B], where a sequence's keys begin among them
  int32_t* remap;          // [T + 1]
  uint32_t* words;
};

// Whether nodes have to be ranked, so that the next layer can be priced.
SDE_HD inline bool is_ranking(const TreeExpandArgs& args) {
  return args.rows.capacity > 0 && expand::has_prices(args);
}

// The keys of the batch as grow left them; every block looks at the same.
struct BatchKeys {
  const uint64_t* keys;      // [B, T]
  const int32_t* num_nodes;  // [B]
  uint64_t* pooled;          // [total] if is_pooled, else room for kMaxPooledKeys
  bool is_pooled;            // shared memory has room for all
  int32_t capacity, num_places, total;

  // At a place of 0 to num_places; 0 where there is no node.
  __device__ uint64_t at(int32_t place) const {
    if (is_pooled) return pooled[place];
    return place % capacity < num_nodes[place / capacity] ? keys[place] : 0;
  }
};

__device__ inline BatchKeys gather_keys(const TreeExpandArgs& args, const Block& block,
                                        const ExpandScratch& scratch, const TrimSpace& space) {
  const int32_t num_seqs = *args.num_seqs, capacity = args.tree.capacity;
  int32_t total = 0;
  for (int32_t first = 0; first < num_seqs; first += block.size()) {
    const int32_t b = first + block.rank();
    const RunningSum sum = block.sum_before(b < num_seqs ? scratch.num_nodes[b] : 0);
    if (b < num_seqs) space.starts[b] = total + sum.before;
    total += sum.total;
  }
  BatchKeys keys{scratch.keys, scratch.num_nodes, space.pooled, false, capacity, 0, total};
  if (total < *args.total_budget && !is_ranking(args)) return keys;  // usual of static trees
  keys.is_pooled = total <= TrimSpace::pooled_capacity(args);
  keys.num_places = keys.is_pooled ? total : num_seqs * capacity;
  block.sync();
  if (!keys.is_pooled) return keys;
  for (int32_t at = block.rank(); at < num_seqs * capacity; at += block.size()) {
    const int32_t b = at / capacity, i = at % capacity;
    if (i < scratch.num_nodes[b]) space.pooled[space.starts[b] + i] = scratch.keys[at];
  }
  block.sync();
  return keys;
}

// What the batch decides for each of its sequences.
struct Pool {
  uint64_t cut;  // nodes with a smaller key are dropped; 0: none
  int32_t kept;  // nodes of the batch
  float floor;   // value a newcomer must beat (what expand::pool returns)
  float least;   // value of a kept node
};

// Every block finds the same.
__device__ inline Pool find_pool(const TreeExpandArgs& args, const Block& block,
                                 const BatchKeys& keys, const TrimSpace& space) {
  const int32_t budget = *args.total_budget;
  if (keys.num_places == 0 && keys.total < budget) return {0, keys.total, 0.0f, kAboveAllValues};
  if (budget > 0 && keys.total > budget) {
    const uint64_t cut = kth_largest_key(
        block, [&](int32_t place) { return keys.at(place); }, keys.num_places, budget,
        space.select);
    return {cut, budget, key_value(cut), key_value(cut)};
  }
  float least = kAboveAllValues;
  for (int32_t place = block.rank(); place < keys.num_places; place += block.size()) {
    const uint64_t key = keys.at(place);
    if (key != 0) least = min_of(least, key_value(key));
  }
  least = block.least_positive(least);
  return {0, keys.total, keys.total < budget ? 0.0f : least, least};
}

// How many of the batch's nodes rank before a thread's key.
__device__ inline int32_t count_before(const Block& block, const KeyLanes& lanes,
                                       const BatchKeys& keys, uint64_t key) {
  if (keys.is_pooled) return count_larger(lanes, keys.pooled, keys.num_places, key);
  return count_larger(
      block, lanes, [&](int32_t place) { return keys.at(place); }, keys.num_places, keys.pooled,
      static_cast<int32_t>(kMaxPooledKeys), key);
}

// This block's part of expand::selection_floor: notes the values of its nodes by rank, and the
// first of them that does not pay for its row.
__device__ inline void rank_nodes(const TreeExpandArgs& args, const Block& block, int64_t b,
                                  const BatchKeys& keys, const Pool& pool,
                                  const ExpandScratch& scratch) {
  int32_t too_dear = 0;
  for (int32_t rank = block.rank(); rank < pool.kept; rank += block.size())
    too_dear += expand::pays_at(args, pool.least, rank) ? 0 : 1;
  int32_t failure = pool.kept;
  if (block.sum(too_dear) == 0) {  // usual: every node would pay for every row
    if (b == 0 && block.is_leader() && pool.kept > 0) scratch.values[pool.kept - 1] = pool.least;
  } else {
    const uint64_t* own = scratch.keys + b * args.tree.capacity;
    const int32_t num_nodes = scratch.num_nodes[b];
    const KeyLanes lanes(block, num_nodes);
    for (int32_t first = 0; first < num_nodes; first += lanes.keys) {
      const int32_t i = first + lanes.index;
      const uint64_t key = i < num_nodes ? own[i] : 0;
      const int32_t rank = count_before(block, lanes, keys, key);
      if (key == 0 || key < pool.cut || lanes.lane != 0) continue;
      const float value = key_value(key);
      scratch.values[rank] = value;
      if (!expand::pays_at(args, value, rank)) failure = min_of(failure, rank);
    }
  }
  failure = static_cast<int32_t>(block.least(static_cast<uint32_t>(failure)));
  if (block.is_leader()) scratch.first_failures[b] = failure;
}

}  // namespace sdengine
