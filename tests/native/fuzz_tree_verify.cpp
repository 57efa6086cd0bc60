// Walks over grown and selected trees: coupled with any targets, rejection with proper laws.
#include "growth_case.h"
#include "sdengine/tree_verify.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Growth;
using fuzz::Random;
using fuzz::require;
using fuzz::Selection;

// Buffers of one walk.
struct Walk {
  Walk(Random& random, int32_t layers)
      : depth(random.integer(0, layers + 1)),
        path(depth),
        out(depth + 1, -77),
        tried(kCalibrationCells, 0),
        accepted(kCalibrationCells, 0) {}

  WalkView view() const { return {path.get(), out.get(), depth, tried.get(), accepted.get()}; }

  void require_chain(const TokenTreeView& tree, int32_t num_accepted) const {
    require(num_accepted <= depth, "accepted within the depth");
    for (int32_t i = 0; i < num_accepted; ++i) {
      require(tree.parents[path[i]] == (i ? path[i - 1] : 0), "path is a chain");
      require(tree.tokens[path[i]] == out[i], "tokens of the path");
    }
    for (int32_t cell = 0; cell < kCalibrationCells; ++cell) {
      require(accepted[cell] >= 0 && accepted[cell] <= tried[cell], "counts");
    }
  }

  int32_t depth;
  Exact<int32_t> path, out, tried, accepted;
};

struct RandomTargets {
  int32_t operator()(int32_t) { return random.integer(-1, vocab); }
  Random& random;
  int32_t vocab;
};

// A random law over a few tokens more than the draft knows, another one at every node.
struct RandomLaw {
  RandomLaw(Random& source, int32_t size) : random(source), probs(size) {}

  bool load(int32_t) {
    double sum = 0.0;
    for (size_t i = 0; i < probs.size(); ++i) sum += probs[i] = random.unit() + 1e-3;
    for (size_t i = 0; i < probs.size(); ++i) probs[i] /= sum;
    return true;
  }
  double probability(int32_t token) const { return probs[token]; }
  int32_t draw(const NodeLaw&, const Residual& residual, const NoiseKey&) {
    require(residual.mass >= 0.0 && residual.mass <= 1.0 + 1e-9, "residual mass");
    return random.integer(0, static_cast<int32_t>(probs.size()) - 1);
  }

  Random& random;
  Exact<double> probs;
};

void select_all(const Growth& growth, Selection& chosen) {
  const int32_t room = chosen.pending[growth.batch] + growth.batch * growth.nodes;
  select_grown(growth, chosen, Exact<float>(room, 0.0f));
}

SDENGINE_FUZZ(coupled_walk, 5000) {
  Growth growth(random);
  grow(growth, random);
  Selection chosen(growth, random);
  select_all(growth, chosen);
  for (int32_t b = 0; b < growth.live[0]; ++b) {
    const TokenTreeView tree = chosen.tree.view.sequence(b);
    RandomTargets targets{random, growth.candidates};
    const Walk walk(random, growth.layers);
    walk.require_chain(tree, walk_coupled(tree, random.chance(0.1f), walk.view(), targets));
  }
}

SDENGINE_FUZZ(rejection_walk, 5000) {
  Growth growth(random, true);
  grow(growth, random);
  Selection chosen(growth, random);
  select_all(growth, chosen);
  const ProposalView proposals{growth.store_tokens.get(), growth.store_probs.get(),
                               growth.candidates};
  for (int32_t b = 0; b < growth.live[0]; ++b) {
    const TokenTreeView tree = chosen.tree.view.sequence(b);
    RandomLaw law(random, growth.candidates + random.integer(0, 3));
    const Walk walk(random, growth.layers);
    const NoiseKey key{random.bits(), random.integer(0, 99), Purpose::kCoin, 0};
    const int32_t num_accepted =
        walk_rejection(tree, proposals, key, random.chance(0.1f), walk.view(), law);
    walk.require_chain(tree, num_accepted);
    require(walk.out[num_accepted] >= 0, "drawn children are a prefix of their proposal");
  }
}

}  // namespace
