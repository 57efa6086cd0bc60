#include "cpu/tree_verify.h"

namespace sdengine {
namespace {

WalkView walk_of(const WalkView& all, int64_t b) {
  return {all.path + b * all.max_depth, all.out_tokens + b * (all.max_depth + 1), all.max_depth,
          all.tried + b * kCalibrationBins, all.accepted + b * kCalibrationBins};
}

void verify_sequence(const TreeVerifyArgs& args, int64_t b) {
  const WalkView walk = walk_of(args.walk, b);
  WalkEnd end = {0, 0};
  if (args.wants_logits[b] == 0) {
    walk.out_tokens[0] = -1;
  } else {
    end = walk_coupled(args.tree.sequence(b), args.target_tokens + args.logit_starts[b],
                       args.wants_logits[b] == 2, walk);
  }
  args.num_accepted[b] = end.num_accepted;
  args.final_node[b] = end.final_node;
}

}  // namespace

void tree_verify(const TreeVerifyArgs& args, Worker& worker) {
  const Range seqs = worker.share(*args.num_seqs);
  for (int64_t b = seqs.begin; b < seqs.end; ++b) verify_sequence(args, b);
}

}  // namespace sdengine
