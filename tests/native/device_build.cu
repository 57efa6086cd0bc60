// Every header algorithm instantiated in device code: what the CPU tests is what a GPU build
// compiles.
#include "sdengine/begin_step.h"
#include "sdengine/build_rows.h"
#include "sdengine/commit_plan.h"
#include "sdengine/gather_pending.h"
#include "sdengine/ngram_match.h"
#include "sdengine/tree_expand.h"
#include "sdengine/tree_select.h"
#include "sdengine/tree_verify.h"

namespace sdengine {

__global__ void run_expand(TreeExpandArgs args) { expand_layer(args); }
__global__ void run_select(TreeSelectArgs args) { select_trees(args); }
__global__ void run_rows(BuildRowsArgs args) { build_row_batch(args); }
__global__ void run_ngrams(NgramMatchArgs args) { match_ngrams(args, blockIdx.x); }
__global__ void run_commit(CommitPlanArgs args) { commit_sequence(args, blockIdx.x); }
__global__ void run_begin(BeginStepArgs args) { begin_sequences(args); }
__global__ void run_gather(GatherPendingArgs args) { gather_pending_tokens(args); }

struct GivenTargets {
  const int32_t* tokens;
  __device__ int32_t operator()(int32_t node) const { return tokens[node]; }
};

__global__ void run_walk(TokenTreeView tree, GivenTargets targets, WalkView walk,
                         int32_t* num_accepted) {
  *num_accepted = walk_coupled(tree, false, walk, targets);
}

// A law over a few tokens, enough to instantiate the rejection walk.
struct GivenLaw {
  const double* probs;
  __device__ bool load(int32_t) { return true; }
  __device__ double probability(int32_t token) const { return probs[token]; }
  __device__ int32_t draw(const NodeLaw& law, const Residual& residual, const NoiseKey&) {
    return is_struck(residual, 0) ? law.count : 0;
  }
};

__global__ void run_rejection(TokenTreeView tree, ProposalView proposals, NoiseKey key,
                              WalkView walk, GivenLaw law, int32_t* num_accepted) {
  *num_accepted = walk_rejection(tree, proposals, key, false, walk, law);
}

}  // namespace sdengine
