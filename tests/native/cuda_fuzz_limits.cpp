// What engines may ask for at most (sdengine/core/config.py) finds its shared memory on every GPU.
// Nothing runs here: a launch that a GPU would refuse is refused.
#include <algorithm>
#include <utility>

#include "cuda_entry_points.h"
#include "cuda_runtime.h"
#include "fuzz.h"

namespace {

using namespace sdengine;
using fuzz::Random;
using fuzz::require;

constexpr int kLeastShared = 99 * 1024;  // of compute capabilities 8.6, 8.9 and 12.0
constexpr int32_t kMaxSeqs = 4096, kMaxNodes = 1024, kMaxDepth = 256, kMaxChildren = 32;
constexpr int32_t kMaxRows = 1024, kMaxLayers = 256;

// A GPU that only says whether it would launch.
struct DryMachine {
  explicit DryMachine(int shared_bytes)
      : usual_bytes(std::exchange(cuda_on_threads::max_shared_bytes(), shared_bytes)) {
    cuda_on_threads::is_dry() = true;
    cuda_on_threads::granted_bytes().clear();
  }
  ~DryMachine() {
    cuda_on_threads::is_dry() = false;
    cuda_on_threads::max_shared_bytes() = usual_bytes;
    cuda_on_threads::granted_bytes().clear();
  }
  int usual_bytes;
};

TreeExpandArgs expand_args(int32_t batch, int32_t nodes, int32_t width) {
  TreeExpandArgs args{};
  args.batch_size = batch;
  args.tree.capacity = nodes;
  args.max_width = width;
  args.max_children = args.num_candidates = kMaxChildren;
  args.rows.capacity = batch * width;
  return args;
}

bool starts(const TreeExpandArgs& args) {
  return sdengine_cuda_tree_expand(&args, args.batch_size, nullptr) == 0;
}

SDENGINE_FUZZ(cuda_limits, 1) {
  (void)random;
  const DryMachine machine(kLeastShared);
  require(starts(expand_args(kMaxSeqs, kMaxNodes, kMaxRows)), "tree_expand");
  TreeSelectArgs select{};
  select.batch_size = kMaxSeqs;
  select.draft.capacity = select.tree.capacity = kMaxNodes;
  require(sdengine_cuda_tree_select(&select, kMaxSeqs, nullptr) == 0, "tree_select");
  TreeVerifyArgs verify{};
  verify.vocab_size = 1 << 18;
  verify.walk.max_depth = kMaxDepth;
  require(sdengine_cuda_tree_verify(&verify, kMaxSeqs, nullptr) == 0, "tree_verify of logits");
  const int32_t token = 0;
  verify.target_tokens = &token;
  require(sdengine_cuda_tree_verify(&verify, kMaxSeqs, nullptr) == 0, "tree_verify of tokens");
  NgramMatchArgs match{};
  match.max_depth = kMaxDepth;
  match.max_children = match.max_matches = match.max_ngram = kMaxChildren;
  match.tree.capacity = kMaxNodes;
  require(sdengine_cuda_ngram_match(&match, kMaxSeqs, nullptr) == 0, "ngram_match");
  const BeginStepArgs begin{};
  require(sdengine_cuda_begin_step(&begin, kMaxSeqs, nullptr) == 0, "begin_step");
  const GatherPendingArgs gather{};
  require(sdengine_cuda_gather_pending(&gather, kMaxSeqs, nullptr) == 0, "gather_pending");
  const BuildRowsArgs build{};
  require(sdengine_cuda_build_rows(&build, kMaxSeqs, nullptr) == 0, "build_rows");
  const CommitPlanArgs commit{};
  require(sdengine_cuda_commit_plan(&commit, kMaxSeqs, nullptr) == 0, "commit_plan");
  KvCompactArgs compact{};
  compact.num_layers = kMaxLayers;
  compact.head_dim = 128;
  compact.element_bytes = 2;
  require(sdengine_cuda_kv_compact(&compact, kMaxSeqs, nullptr) == 0, "kv_compact");
}

// The permission is the kernel's: a small launch must not take it away from a larger one of another
// engine, which may be about to start, or lie in a graph.
SDENGINE_FUZZ(cuda_shared_memory_stays_granted, 1) {
  (void)random;
  const DryMachine machine(kLeastShared);
  require(starts(expand_args(1, 1000, 70)), "the larger one");
  size_t most = 0;
  for (const auto& [kernel, bytes] : cuda_on_threads::granted_bytes()) most = std::max(most, bytes);
  require(most > 80 * 1024, "it takes much");
  require(starts(expand_args(1, 1000, 40)), "the smaller one");
  for (const auto& [kernel, bytes] : cuda_on_threads::granted_bytes())
    require(bytes >= most, "the larger one may still start");
}

// An op called by itself may ask for more than there is.
SDENGINE_FUZZ(cuda_too_much_is_refused, 1) {
  (void)random;
  const DryMachine machine(kLeastShared);
  const TreeExpandArgs args = expand_args(1 << 15, kMaxNodes, 1);
  require(
      sdengine_cuda_tree_expand(&args, args.batch_size, nullptr) == cudaErrorLaunchOutOfResources,
      "trim has no room for so many sequences");
}

}  // namespace
