// tree_verify: walks every sequence's token tree. Contract: kernels/tree_verify.py.
//
// With the target's tokens given, a thread per sequence follows them. With logits, a team of blocks
// per sequence walks, as many as the machine has room for, up to 16: only rows of visited nodes are
// read, each by the whole team, and the walk is the header's, taken by all threads alike with one
// of them writing. One launch, however deep the trees are; a visited row costs two or three
// meetings of the team.
#include "cuda/launch.cuh"
#include "cuda/target_row.cuh"
#include "sdengine/tree_verify.h"

namespace sdengine {
namespace {

constexpr int32_t kWalkThreads = 256;
// Below it another block costs more than it reads; tests set it so that teams form for few tokens.
#if !defined(SDENGINE_MIN_TOKENS_PER_BLOCK)
#define SDENGINE_MIN_TOKENS_PER_BLOCK 2048
#endif
constexpr int32_t kMinTokensPerBlock = SDENGINE_MIN_TOKENS_PER_BLOCK;

__global__ void walk_tokens_kernel(TreeVerifyArgs args) {
  const int64_t b = blockIdx.x;
  if (threadIdx.x != 0 || b >= *args.num_seqs) return;
  const WalkView walk = walk_of(args.walk, b);
  if (args.wants_logits[b] == kNoLogits) {
    walk.out_tokens[0] = -1;
    args.num_accepted[b] = 0;
    return;
  }
  const int32_t* tokens = args.target_tokens + args.logit_starts[b];
  auto draw = [=](int32_t node) { return tokens[node]; };
  args.num_accepted[b] =
      walk_coupled(args.tree.sequence(b), args.wants_logits[b] == kRootOnly, walk, draw);
}

struct WalkSpace {
  SDE_HD explicit WalkSpace(unsigned char* base) : layout(base) {
    team = layout.take<TeamSpace>(1);
    probs = layout.take<double>(kMaxSupport);
    words = layout.take<uint32_t>(kMaxWarps);
  }
  SharedLayout layout;
  TeamSpace* team;
  double* probs;
  uint32_t* words;
};

__device__ int32_t walk_logits(const TreeVerifyArgs& args, int64_t b, const WalkView& walk,
                               Team* team, double* shared_probs) {
  const TokenTreeView tree = args.tree.sequence(b);
  const bool is_root_only = args.wants_logits[b] == kRootOnly;
  DeviceRow row(team, args.logits + args.logit_starts[b] * args.vocab_size,
                static_cast<int32_t>(args.vocab_size), args.tables, b, shared_probs);
  const int32_t root_position = args.tree_starts[b] - 1;
  const uint64_t seed = static_cast<uint64_t>(args.seeds[b]);
  if (args.is_rejection && args.tables.temperature[b] >= kGreedyTemperature) {
    const NoiseKey root_key = {seed, root_position, Purpose::kCoin, 0};
    return walk_rejection(tree, args.proposals, root_key, is_root_only, walk, row);
  }
  auto draw = [&](int32_t node) {
    const int32_t depth = node == 0 ? 0 : tree.depths[node];
    const NoiseKey key = {seed, root_position + depth + 1, Purpose::kTarget, 0};
    return row.load(node) ? row.sample(key) : -1;
  };
  return walk_coupled(tree, is_root_only, walk, draw);
}

__global__ void walk_logits_kernel(TreeVerifyArgs args) {
  const WalkSpace space(shared_memory());
  const int64_t b = blockIdx.x;
  if (b >= *args.num_seqs) return;
  uint64_t* counters = args.scratch;  // [B], then the slots of each sequence
  uint64_t* slots = counters + gridDim.x + b * (kTeamWords - 1);
  Team team(Block(space.words), space.team, reinterpret_cast<uint32_t*>(counters + b), slots);
  WalkView walk = walk_of(args.walk, b);
  walk.is_writer = team.rank() == 0;
  int32_t num_accepted = 0;
  if (args.wants_logits[b] != kNoLogits) {
    num_accepted = walk_logits(args, b, walk, &team, space.probs);
  } else if (walk.is_writer) {
    walk.out_tokens[0] = -1;
  }
  if (walk.is_writer) args.num_accepted[b] = num_accepted;
}

// Blocks per sequence: all of them resident at once, and none with next to nothing to read.
int32_t team_size(int32_t num_resident, int32_t batch_size, int64_t vocab_size) {
  int64_t size = num_resident / batch_size;
  const int64_t useful = vocab_size / kMinTokensPerBlock;
  size = size < useful ? size : useful;
  size = size < kMaxTeam ? size : kMaxTeam;
  return size > 1 ? static_cast<int32_t>(size) : 1;
}

// Blocks of the walk that the machine holds at once.
cudaError_t count_resident(int64_t shared_bytes, int32_t* count) {
  int device = 0, multiprocessors = 0, blocks = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, walk_logits_kernel, kWalkThreads,
                                                        static_cast<size_t>(shared_bytes));
  *count = multiprocessors * blocks;
  return error;
}

cudaError_t launch_walk(const TreeVerifyArgs& args, int32_t batch_size, void* stream) {
  const int64_t shared_bytes = WalkSpace(nullptr).layout.bytes();
  int32_t resident = 0;
  cudaError_t error = count_resident(shared_bytes, &resident);
  if (error != cudaSuccess) return error;
  const int32_t team = team_size(resident, batch_size, args.vocab_size);
  LaunchShape shape = {dim3(static_cast<unsigned>(batch_size), static_cast<unsigned>(team)),
                       kWalkThreads, shared_bytes};
  shape.is_cooperative = team > 1;
  error = cudaMemsetAsync(args.scratch, 0, static_cast<size_t>(batch_size) * sizeof(uint64_t),
                          static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return error;
  return launch(walk_logits_kernel, shape, stream, args);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_tree_verify(const sdengine::TreeVerifyArgs* args,
                                                int32_t batch_size, void* stream) {
  using namespace sdengine;
  if (batch_size == 0) return cudaSuccess;
  if (args->target_tokens == nullptr) return launch_walk(*args, batch_size, stream);
  const LaunchShape shape = {dim3(static_cast<unsigned>(batch_size)), kWarpSize};
  return launch(walk_tokens_kernel, shape, stream, *args);
}
