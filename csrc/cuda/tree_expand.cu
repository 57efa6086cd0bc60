// tree_expand: merges one draft layer into the trees of the batch and emits the next layer's rows.
// Contract: kernels/tree_expand.py.
//
// Three launches, one block per sequence each, so that what concerns the whole batch is settled
// between launches and no block waits for another:
//   grow    proposes the layer's candidates (expand_children.cuh) and keeps the best
//           `node_budget` nodes
//   trim    every block finds the batch's cut for itself, drops its own nodes below it, ranks the
//           rest among those of the batch, and notes which can have children
//   emit    every block learns from the ranks what a child has to be worth, adds up the rows before
//           its own, and fills its rows
// The arithmetic is that of sdengine/tree_expand.h. The serial code stops collecting candidates
// once they cannot enter any more; that changes no result, so all of them are collected here.
#include "cuda/expand_children.cuh"
#include "cuda/expand_pool.cuh"
#include "cuda/launch.cuh"
#include "cuda/tree_expand.cuh"

namespace sdengine {
namespace {

constexpr int32_t kExpandThreads = 256;

// A block's memory. Its arrays are in shared memory where the device has room for them there, else
// in scratch: kIsShared tells the compiler which, so that neither pays for the other.
template <bool kIsShared>
struct GrowSpace {
  SDE_HD GrowSpace(unsigned char* base, const TreeExpandArgs& args, int64_t b)
      : layout(base),
        select(layout.take<SelectSpace>(1)),
        words(layout.take<uint32_t>(kMaxWarps)),
        arrays(arrays_of(args, b)) {}

  SharedLayout layout;
  SelectSpace* select;
  uint32_t* words;
  GrowArrays arrays;

 private:
  SDE_HD GrowArrays arrays_of(const TreeExpandArgs& args, int64_t b) {
    if constexpr (kIsShared) {
      return GrowArrays(&layout, args);
    } else {
      uint64_t* own = ExpandScratch(args).arrays + b * grow_words(args);
      SharedLayout in_scratch(reinterpret_cast<unsigned char*>(own));
      return GrowArrays(&in_scratch, args);
    }
  }
};

template <class Space>
__device__ bool is_candidate(const TreeExpandArgs& args, const Space& space, int32_t at) {
  return at % most_children(args) < space.arrays.counts[at / most_children(args)];
}

// Key of a candidate. Its place among all that there could be orders like its place among those
// that there are.
template <class Space>
__device__ uint64_t candidate_key(const TreeExpandArgs& args, const Space& space, int32_t held,
                                  int32_t at) {
  if (!is_candidate(args, space, at)) return 0;
  return rank_key(space.arrays.candidates[at].value, static_cast<uint32_t>(held + 1 + at));
}

// The key of the budget-th best among held nodes and candidates.
template <class Space>
__device__ uint64_t layer_cut(const TreeExpandArgs& args, const Block& block,
                              const DraftTreeView& tree, int32_t held, int32_t slots,
                              int32_t budget, const Space& space) {
  for (int32_t i = block.rank(); i < held; i += block.size())
    space.arrays.keys[i] = rank_key(tree.values[i + 1], static_cast<uint32_t>(i + 1));
  for (int32_t at = block.rank(); at < slots; at += block.size())
    space.arrays.keys[held + at] = candidate_key(args, space, held, at);
  block.sync();
  const uint64_t* keys = space.arrays.keys;
  return kth_largest_key(
      block, [=](int32_t i) { return keys[i]; }, held + slots, budget, space.select);
}

// Appends the candidates whose key is at least `cut`, in order; returns the number of nodes.
template <class Space>
__device__ int32_t append_candidates(const TreeExpandArgs& args, const Block& block,
                                     const DraftTreeView& tree, int32_t held, int32_t kept,
                                     int32_t slots, uint64_t cut, const Space& space) {
  for (int32_t first = 0; first < slots; first += block.size()) {
    const int32_t at = first + block.rank();
    const uint64_t key = at < slots ? candidate_key(args, space, held, at) : 0;
    const bool enters = key != 0 && key >= cut;
    const RunningSum sum = block.count_flags(enters);
    if (enters) {
      const Candidate& candidate = space.arrays.candidates[at];
      const int32_t parent = cut == 0 ? candidate.parent : space.arrays.remap[candidate.parent];
      expand::write_node(args, tree, kept + sum.before + 1, candidate, parent);
    }
    kept += sum.total;
  }
  return kept;
}

// Merges the layer into the sequence's tree; returns its number of nodes.
template <class Space>
__device__ int32_t merge_layer(const TreeExpandArgs& args, const Block& block, int64_t b,
                               const DraftTreeView& tree, const Space& space) {
  const int32_t held = *tree.num_nodes;
  if (args.layer >= args.depth_limits[b]) return held;
  const int32_t budget = expand::node_budget(args, b);
  const int32_t num_rows = min_of(args.cu_rows[b + 1] - args.cu_rows[b], args.max_width);
  const float floor = entry_floor(block, tree, held, budget);
  const int32_t limit = min_of(most_children(args), budget);
  const int32_t proposed =
      propose_rows(block, {args, space.arrays, b, tree, num_rows, limit, floor});
  if (proposed == 0) return held;
  const int32_t slots = num_rows * most_children(args);
  if (held + proposed <= budget)
    return append_candidates(args, block, tree, held, held, slots, 0, space);
  const uint64_t cut = layer_cut(args, block, tree, held, slots, budget, space);
  const int32_t kept =
      drop_below(block, tree, held, cut, expand::NodeOrder{0, 0}, space.arrays.remap);
  return append_candidates(args, block, tree, held, kept, slots, cut, space);
}

template <bool kIsShared>
__global__ void grow_kernel(TreeExpandArgs args) {
  const int64_t b = blockIdx.x;
  const GrowSpace<kIsShared> space(shared_memory(), args, b);
  const Block block(space.words);
  if (b >= *args.num_seqs) return;
  const DraftTreeView tree = args.tree.sequence(b);
  if (args.layer == 0 && block.is_leader())
    expand::reset_to_root(tree, expand::root_values_of(args), b);
  block.sync();
  const int32_t count = merge_layer(args, block, b, tree, space);
  block.sync();
  const ExpandScratch scratch(args);
  const expand::NodeOrder order = expand::pooled_order(args, b);
  for (int32_t i = 1 + block.rank(); i <= count; i += block.size())
    scratch.keys[b * args.tree.capacity + i - 1] =
        rank_key(tree.values[i], order(tree.depths[i], i));
  if (block.is_leader()) *tree.num_nodes = scratch.num_nodes[b] = count;
}

// Notes the nodes that can have children in the next layer (expand::choose_frontier before it asks
// what they cost, by a block).
__device__ void open_nodes(const TreeExpandArgs& args, const Block& block, int64_t b,
                           const DraftTreeView& tree, float pool_floor,
                           const ExpandScratch& scratch, const TrimSpace& space) {
  const int32_t depth = args.layer + 1, num_nodes = *tree.num_nodes;
  // Rows of earlier sequences never limit: the batch has room for all, by contract.
  const int32_t room = expand::frontier_room(args, b, 0);
  int32_t count = 0;
  float floor = 0.0f;
  if (room > 0 && depth < args.depth_limits[b]) {
    const float own_floor = entry_floor(block, tree, num_nodes, expand::node_budget(args, b));
    floor = max_of(own_floor, pool_floor);
    int32_t eligible = 0;
    for (int32_t i = 1 + block.rank(); i <= num_nodes; i += block.size()) {
      const bool is_eligible =
          tree.depths[i] == depth && expand::can_have_children(args, b, tree, i, floor);
      space.promise_keys[i - 1] =
          is_eligible ? rank_key(expand::promise_of(tree, i), static_cast<uint32_t>(i)) : 0;
      eligible += is_eligible ? 1 : 0;
    }
    eligible = block.sum(eligible);
    const uint64_t* keys = space.promise_keys;
    const uint64_t cut = eligible > room ? kth_largest_key(
                                               block, [=](int32_t i) { return keys[i]; }, num_nodes,
                                               room, space.select)
                                         : 1;
    for (int32_t first = 1; first <= num_nodes; first += block.size()) {
      const int32_t i = first + block.rank();
      const bool is_open = i <= num_nodes && keys[i - 1] >= cut;
      const RunningSum sum = block.count_flags(is_open);
      if (is_open) {
        const int64_t at = b * args.max_width + count + sum.before;
        scratch.open[at] = i;
        scratch.promises[at] = key_value(keys[i - 1]);
      }
      count += sum.total;
    }
  }
  if (!block.is_leader()) return;
  scratch.num_open[b] = count;
  scratch.floors[b] = floor;
}

__global__ void trim_kernel(TreeExpandArgs args) {
  const TrimSpace space(shared_memory(), args);
  const Block block(space.words);
  const int64_t b = blockIdx.x;
  if (b >= *args.num_seqs) return;
  const DraftTreeView tree = args.tree.sequence(b);
  const ExpandScratch scratch(args);
  const BatchKeys keys = gather_keys(args, block, scratch, space);
  const Pool pool = find_pool(args, block, keys, space);
  if (pool.cut != 0) {
    const int32_t kept = drop_below(block, tree, *tree.num_nodes, pool.cut,
                                    expand::pooled_order(args, b), space.remap);
    if (block.is_leader()) *tree.num_nodes = kept;
    block.sync();
  }
  if (args.rows.capacity == 0) return;
  if (is_ranking(args)) rank_nodes(args, block, b, keys, pool, scratch);
  open_nodes(args, block, b, tree, pool.floor, scratch, space);
}

struct EmitSpace {
  SDE_HD EmitSpace(unsigned char* base, const TreeExpandArgs& args) : layout(base) {
    words = layout.take<uint32_t>(kMaxWarps);
    gains = layout.take<float>(args.batch_size);
  }
  SharedLayout layout;
  uint32_t* words;
  float* gains;  // [B], what forwarding a sequence's nodes promises
};

// expand::layer_share, by a block.
__device__ float layer_share(const TreeExpandArgs& args, const Block& block) {
  if (!expand::is_slot_rule(args.rule)) return 0.0f;
  int32_t growing = 0;
  for (int32_t b = block.rank(); b < *args.num_seqs; b += block.size())
    growing += expand::is_growing(args, b) ? 1 : 0;
  return expand::layer_share(args, block.sum(growing));
}

// expand::selection_floor, from what the blocks of trim found.
__device__ float selection_floor(const TreeExpandArgs& args, const Block& block,
                                 const ExpandScratch& scratch) {
  if (!expand::has_prices(args)) return 0.0f;
  uint32_t failure = ~0u;
  for (int32_t b = block.rank(); b < *args.num_seqs; b += block.size()) {
    const uint32_t own = static_cast<uint32_t>(scratch.first_failures[b]);
    failure = own < failure ? own : failure;
  }
  const int32_t kept = static_cast<int32_t>(block.least(failure));
  const float last = kept > 0 ? scratch.values[kept - 1] : kAboveAllValues;
  return expand::newcomer_cost(args, kept, last);
}

// Sequence i's open nodes that are worth `cost`, and what forwarding them promises beyond it.
__device__ int32_t count_worthy(const TreeExpandArgs& args, const ExpandScratch& scratch, int32_t i,
                                float cost, float* gain) {
  const float* promises = scratch.promises + int64_t{i} * args.max_width;
  const float least = max_of(cost, scratch.floors[i]);
  int32_t count = 0;
  *gain = 0.0f;
  for (int32_t j = 0; j < scratch.num_open[i]; ++j) {
    if (promises[j] < cost) continue;
    ++count;
    *gain += promises[j] - least;
  }
  return count;
}

// Fills sequence b's rows, from row `first` on; returns how many there are.
__device__ int32_t emit_open_nodes(const TreeExpandArgs& args, const Block& block, int32_t b,
                                   const DraftTreeView& tree, const ExpandScratch& scratch,
                                   float cost, int32_t first) {
  const int64_t begin = int64_t{b} * args.max_width;
  const int32_t forwarded = *tree.num_forwarded;
  int32_t count = 0;
  for (int32_t start = 0; start < scratch.num_open[b]; start += block.size()) {
    const int32_t j = start + block.rank();
    const bool is_worthy = j < scratch.num_open[b] && !(scratch.promises[begin + j] < cost);
    const RunningSum sum = block.count_flags(is_worthy);
    if (is_worthy) {
      const int32_t place = count + sum.before, node = scratch.open[begin + j];
      args.rows.row_node[first + place] = node;
      expand::emit_row(args, b, tree, node, first + place, forwarded + 1 + place);
    }
    count += sum.total;
  }
  block.sync();
  return count;
}

__global__ void emit_kernel(TreeExpandArgs args) {
  const EmitSpace space(shared_memory(), args);
  const Block block(space.words);
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  const int32_t num_seqs = *args.num_seqs;
  const RowBatchView& rows = args.rows;
  if (b == 0 && block.is_leader()) {
    rows.cu_rows[0] = 0;
    if (num_seqs == 0) *rows.num_rows = 0;
  }
  if (b >= num_seqs) return;

  const ExpandScratch scratch(args);
  const float cost = max_of(selection_floor(args, block, scratch), layer_share(args, block));
  int32_t earlier = 0;
  for (int32_t i = block.rank(); i < num_seqs; i += block.size()) {
    const int32_t count = count_worthy(args, scratch, i, cost, &space.gains[i]);
    earlier += i < b ? count : 0;
  }
  earlier = block.sum(earlier);
  float gain = 0.0f;
  for (int32_t i = 0; i < num_seqs; ++i) gain += space.gains[i];

  const DraftTreeView tree = args.tree.sequence(b);
  int32_t first = 0, count = 0;
  if (expand::is_worth_running(args, gain)) {
    first = earlier;
    count = emit_open_nodes(args, block, b, tree, scratch, cost, first);
  }
  if (!block.is_leader()) return;
  *tree.num_forwarded += count;
  rows.tree_starts[b] = args.tree_starts[b];
  rows.cu_rows[b + 1] = first + count;
  if (b + 1 == num_seqs) *rows.num_rows = first + count;
}

template <bool kIsShared>
int64_t grow_bytes(const TreeExpandArgs& args) {
  return GrowSpace<kIsShared>(nullptr, args, 0).layout.bytes();
}

cudaError_t launch_grow(const TreeExpandArgs& args, const dim3& grid, void* stream) {
  int64_t limit = 0;
  const cudaError_t error = shared_limit(&limit);
  if (error != cudaSuccess) return error;
  if (grow_bytes<true>(args) <= limit)
    return launch(grow_kernel<true>, {grid, kExpandThreads, grow_bytes<true>(args)}, stream, args);
  return launch(grow_kernel<false>, {grid, kExpandThreads, grow_bytes<false>(args)}, stream, args);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_tree_expand(const sdengine::TreeExpandArgs* args,
                                                int32_t batch_size, void* stream) {
  using namespace sdengine;
  const dim3 grid(batch_size);
  cudaError_t error = launch_grow(*args, grid, stream);
  if (error != cudaSuccess) return error;
  const int64_t trim_bytes = TrimSpace(nullptr, *args).layout.bytes();
  error = launch(trim_kernel, {grid, kExpandThreads, trim_bytes}, stream, *args);
  if (error != cudaSuccess || args->rows.capacity == 0) return error;
  const int64_t emit_bytes = EmitSpace(nullptr, *args).layout.bytes();
  return launch(emit_kernel, {grid, kExpandThreads, emit_bytes}, stream, *args);
}
