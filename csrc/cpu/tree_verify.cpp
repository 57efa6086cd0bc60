#include "cpu/tree_verify.h"

#include "cpu/target_row.h"

namespace sdengine {
namespace {

int32_t walk_drawn_tokens(const TreeVerifyArgs& args, int64_t b, const WalkView& walk) {
  const int32_t* tokens = args.target_tokens + args.logit_starts[b];
  auto draw = [&](int32_t node) { return tokens[node]; };
  return walk_coupled(args.tree.sequence(b), args.wants_logits[b] == kRootOnly, walk, draw);
}

int32_t walk_logits(const TreeVerifyArgs& args, int64_t b, const WalkView& walk) {
  const TokenTreeView tree = args.tree.sequence(b);
  const bool is_root_only = args.wants_logits[b] == kRootOnly;
  TargetRow target(args.logits + args.logit_starts[b] * args.vocab_size, args.vocab_size,
                   args.tables, static_cast<int32_t>(b));
  const int32_t root_position = args.tree_starts[b] - 1;
  const uint64_t seed = static_cast<uint64_t>(args.seeds[b]);
  if (args.is_rejection && args.tables.temperature[b] >= kGreedyTemperature) {
    const NoiseKey root_key = {seed, root_position, Purpose::kCoin, 0};
    return walk_rejection(tree, args.proposals, root_key, is_root_only, walk, target);
  }
  auto draw = [&](int32_t node) {
    const int32_t depth = node == 0 ? 0 : tree.depths[node];
    const NoiseKey key = {seed, root_position + depth + 1, Purpose::kTarget, 0};
    return target.load(node) ? target.sample(key) : -1;
  };
  return walk_coupled(tree, is_root_only, walk, draw);
}

void verify_sequence(const TreeVerifyArgs& args, int64_t b) {
  const WalkView walk = walk_of(args.walk, b);
  int32_t num_accepted = 0;
  if (args.wants_logits[b] == kNoLogits) {
    walk.out_tokens[0] = -1;
  } else if (args.target_tokens != nullptr) {
    num_accepted = walk_drawn_tokens(args, b, walk);
  } else {
    num_accepted = walk_logits(args, b, walk);
  }
  args.num_accepted[b] = num_accepted;
}

}  // namespace

void tree_verify(const TreeVerifyArgs& args, Worker& worker) {
  const Range seqs = worker.share(*args.num_seqs);
  for (int64_t b = seqs.begin; b < seqs.end; ++b) verify_sequence(args, b);
}

}  // namespace sdengine
