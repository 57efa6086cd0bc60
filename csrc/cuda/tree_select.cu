// tree_select: trims the drafted trees over the batch and renumbers them in depth-first preorder.
// Contract: kernels/tree_select.py.
//
// Two launches, one block per sequence each. The first gives every live node its rank over the
// batch by counting the keys above its own, and notes the best rank that is not worth its row. The
// count is quadratic in the live nodes, which a verify pass has to pay for anyway and which are a
// few hundred at most; it needs no sort, no padding and no exchange between blocks. The second
// drops what ranks at or below the first failure of any block, and renumbers.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "cuda/select_key.cuh"
#include "sdengine/tree_select.h"

namespace sdengine {
namespace {

constexpr int32_t kSelectThreads = 256;
constexpr int32_t kTileKeys = 1024;

// The op's scratch tensor between the two launches.
struct SelectScratch {
  int32_t* ranks;          // [B, T]
  int32_t* first_failure;  // [B], least rank of the sequence's nodes that cannot pay for its row
};

SDE_HD SelectScratch scratch_of(const TreeSelectArgs& args) {
  int32_t* words = reinterpret_cast<int32_t*>(args.scratch);
  return {words, words + int64_t{args.batch_size} * args.draft.capacity};
}

struct RankSpace {
  SDE_HD RankSpace(unsigned char* base, const TreeSelectArgs& args) : layout(base) {
    words = layout.take<uint32_t>(kMaxWarps);
    starts = layout.take<int32_t>(args.batch_size + 1);
    tile = layout.take<uint64_t>(kTileKeys);
  }
  SharedLayout layout;
  uint32_t* words;
  int32_t* starts;  // [B + 1], live nodes of the sequences before
  uint64_t* tile;
};

// starts[b]: live nodes of the sequences before b; all up to starts[num_seqs].
__device__ void count_live_nodes(const TreeSelectArgs& args, const Block& block, int32_t num_seqs,
                                 int32_t* starts) {
  int32_t counted = 0;
  for (int32_t first = 0; first < num_seqs; first += block.size()) {
    const int32_t b = first + block.rank();
    const RunningSum sum = block.sum_before(b < num_seqs ? args.draft.num_nodes[b] : 0);
    if (b < num_seqs) starts[b] = counted + sum.before;
    counted += sum.total;
  }
  if (block.is_leader()) starts[num_seqs] = counted;
  block.sync();
}

// The key of the i-th live node of the batch.
__device__ uint64_t live_key(const TreeSelectArgs& args, const int32_t* starts, int32_t num_seqs,
                             int32_t i) {
  int32_t low = 0, high = num_seqs;  // starts[low] <= i < starts[high]
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (starts[middle] <= i ? low : high) = middle;
  }
  return select::node_key(args, args.draft.sequence(low), low, i - starts[low] + 1);
}

// How many live nodes rank above a thread's key.
__device__ int32_t count_above(const TreeSelectArgs& args, const Block& block,
                               const KeyLanes& lanes, const RankSpace& space, int32_t num_seqs,
                               uint64_t key) {
  return count_larger(
      block, lanes, [&](int32_t i) { return live_key(args, space.starts, num_seqs, i); },
      space.starts[num_seqs], space.tile, kTileKeys, key);
}

__global__ void rank_nodes_kernel(TreeSelectArgs args) {
  const RankSpace space(shared_memory(), args);
  const Block block(space.words);
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  const int32_t num_seqs = *args.num_seqs;
  if (b >= num_seqs) return;
  count_live_nodes(args, block, num_seqs, space.starts);

  const SelectScratch scratch = scratch_of(args);
  const DraftTreeView draft = args.draft.sequence(b);
  const int32_t base = args.cu_pending[num_seqs];
  const int32_t room = select::room_for_nodes(args, base);
  const int32_t num_nodes = *draft.num_nodes;
  uint32_t failure = static_cast<uint32_t>(space.starts[num_seqs]);
  const KeyLanes lanes(block, num_nodes);
  for (int32_t first = 1; first <= num_nodes; first += lanes.keys) {
    const int32_t i = first + lanes.index;
    const bool is_live = i <= num_nodes;
    const uint64_t key = is_live ? select::node_key(args, draft, b, i) : ~uint64_t{0};
    const int32_t rank = count_above(args, block, lanes, space, num_seqs, key);
    if (!is_live || lanes.lane != 0) continue;
    scratch.ranks[int64_t{b} * args.draft.capacity + i - 1] = rank;
    const bool is_worth = rank < room && key_value(key) >= args.thresholds[base + rank];
    if (!is_worth && static_cast<uint32_t>(rank) < failure) failure = static_cast<uint32_t>(rank);
  }
  failure = block.least(failure);
  if (block.is_leader()) scratch.first_failure[b] = static_cast<int32_t>(failure);
}

struct RenumberSpace {
  SDE_HD RenumberSpace(unsigned char* base, const TreeSelectArgs& args) : layout(base) {
    words = layout.take<uint32_t>(kMaxWarps);
    parents = layout.take<int32_t>(args.draft.capacity + 1);
    sizes = layout.take<int32_t>(args.draft.capacity + 1);
    offsets = layout.take<int32_t>(args.draft.capacity + 1);
    places = layout.take<int32_t>(args.draft.capacity + 1);
  }
  SharedLayout layout;
  uint32_t* words;
  int32_t* parents;  // [T + 1], of the draft tree; -1 where a node is dropped
  int32_t* sizes;    // [T + 1], kept nodes of the subtree
  int32_t* offsets;  // [T + 1], place within the parent's subtree
  int32_t* places;   // [T + 1], preorder place
};

// Parents of the kept nodes and the sizes of their subtrees.
__device__ void count_kept(const TreeSelectArgs& args, const Block& block, int32_t b,
                           const RenumberSpace& space) {
  const SelectScratch scratch = scratch_of(args);
  const DraftTreeView draft = args.draft.sequence(b);
  uint32_t failure = ~0u;
  for (int32_t i = block.rank(); i < *args.num_seqs; i += block.size()) {
    const uint32_t found = static_cast<uint32_t>(scratch.first_failure[i]);
    failure = found < failure ? found : failure;
  }
  failure = block.least(failure);
  const int32_t* ranks = scratch.ranks + int64_t{b} * args.draft.capacity;
  for (int32_t i = block.rank(); i <= *draft.num_nodes; i += block.size()) {
    const bool is_kept = i == 0 || static_cast<uint32_t>(ranks[i - 1]) < failure;
    space.parents[i] = is_kept ? draft.parents[i] : -1;
    space.sizes[i] = is_kept ? 1 : 0;
  }
  block.sync();
  for (int32_t i = 1 + block.rank(); i <= *draft.num_nodes; i += block.size())
    for (int32_t at = space.parents[i]; at >= 0; at = space.parents[at])
      atomicAdd(&space.sizes[at], 1);
  block.sync();
}

// Preorder places of the kept nodes: what a node's earlier siblings take, added up along its path.
// Siblings stand side by side in a draft tree, and what is kept of them is a prefix.
__device__ void find_places(const Block& block, int32_t num_nodes, const RenumberSpace& space) {
  for (int32_t i = block.rank(); i <= num_nodes; i += block.size()) {
    int32_t offset = i == 0 ? 0 : 1;
    for (int32_t j = i - 1; j > 0 && space.parents[j] == space.parents[i]; --j)
      offset += space.sizes[j];
    space.offsets[i] = offset;
  }
  block.sync();
  for (int32_t i = block.rank(); i <= num_nodes; i += block.size()) {
    int32_t place = 0;
    for (int32_t at = i; at >= 0; at = space.parents[at]) place += space.offsets[at];
    space.places[i] = place;
  }
  block.sync();
}

// Word w of a kept node's ancestor mask.
__device__ uint64_t mask_word(const RenumberSpace& space, int32_t i, int32_t w) {
  uint64_t word = 0;
  for (int32_t at = i; at > 0; at = space.parents[at]) {
    const int32_t bit = space.places[at] - 1;
    if (bit >> 6 == w) word |= uint64_t{1} << (bit & 63);
  }
  return word;
}

__global__ void renumber_kernel(TreeSelectArgs args) {
  const RenumberSpace space(shared_memory(), args);
  const Block block(space.words);
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  if (b >= *args.num_seqs) return;
  const DraftTreeView draft = args.draft.sequence(b);
  const TokenTreeView tree = args.tree.sequence(b);
  const int32_t num_nodes = *draft.num_nodes;
  count_kept(args, block, b, space);
  find_places(block, num_nodes, space);

  if (block.is_leader()) select::write_root(tree, draft, space.sizes[0] - 1);
  for (int32_t i = 1 + block.rank(); i <= num_nodes; i += block.size()) {
    if (space.sizes[i] == 0) continue;
    const int32_t above = space.parents[i], node = space.places[i], parent = space.places[above];
    select::place_node(draft, i, tree, node, parent, node + space.sizes[i],
                       parent + space.sizes[above]);
  }
  const int64_t words = tree.mask_words;
  for (int64_t at = block.rank(); at < num_nodes * words; at += block.size()) {
    const int32_t i = static_cast<int32_t>(at / words) + 1, w = static_cast<int32_t>(at % words);
    if (space.sizes[i] > 0)
      tree.ancestor_mask[space.places[i] * words + w] = mask_word(space, i, w);
  }
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_tree_select(const sdengine::TreeSelectArgs* args,
                                                int32_t batch_size, void* stream) {
  using namespace sdengine;
  const dim3 grid(batch_size);
  const int64_t rank_bytes = RankSpace(nullptr, *args).layout.bytes();
  const cudaError_t error =
      launch(rank_nodes_kernel, {grid, kSelectThreads, rank_bytes}, stream, *args);
  if (error != cudaSuccess) return error;
  const int64_t bytes = RenumberSpace(nullptr, *args).layout.bytes();
  return launch(renumber_kernel, {grid, kSelectThreads, bytes}, stream, *args);
}
