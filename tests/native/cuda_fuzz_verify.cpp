// The device's tree_verify: a team of blocks gives the bits of one block, and paths are chains.
// That one block gives the bits of the CPU is a matter of test_cuda_on_threads.py.
#include <algorithm>
#include <cstring>

#include "cuda/target_row.cuh"
#include "cuda_entry_points.h"
#include "cuda_runtime.h"
#include "growth_case.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Growth;
using fuzz::Random;
using fuzz::require;
using fuzz::Selection;

// Everything that a walk writes, in one array.
struct Verdict {
  Verdict(int32_t batch, int32_t depth)
      : b(batch),
        d(depth),
        ints(static_cast<size_t>(batch) * (2 * depth + 2 + 2 * kCalibrationCells), 0) {}
  int32_t* accepted() const { return ints.get(); }
  WalkView walk() const {
    int32_t* path = accepted() + b;
    int32_t* out = path + int64_t{b} * d;
    int32_t* tried = out + int64_t{b} * (d + 1);
    return {path, out, d, tried, tried + int64_t{b} * kCalibrationCells};
  }
  int32_t b, d;
  Exact<int32_t> ints;
};

void verify(TreeVerifyArgs args, const Verdict& verdict, int multiprocessors) {
  Exact<uint64_t> scratch(static_cast<size_t>(verdict.b) * kTeamWords, 0xdeadbeefdeadbeefull);
  args.scratch = scratch.get();
  args.num_accepted = verdict.accepted();
  args.walk = verdict.walk();
  cuda_on_threads::num_multiprocessors() = multiprocessors;
  require(sdengine_cuda_tree_verify(&args, verdict.b, nullptr) == 0, "tree_verify starts");
}

void require_chain(const TokenTreeView& tree, const WalkView& walk, int32_t accepted) {
  for (int32_t i = 0; i < accepted; ++i) {
    require(tree.parents[walk.path[i]] == (i ? walk.path[i - 1] : 0), "path is a chain");
    require(tree.tokens[walk.path[i]] == walk.out_tokens[i], "tokens of the path");
  }
}

// A bound that is too low would lose a winner once in many draws.
SDENGINE_FUZZ(cuda_most_noise, 1) {
  for (int32_t word_bits = 0; word_bits <= 32; ++word_bits) {
    const uint64_t low = word_bits == 0 ? 0 : uint64_t{1} << (word_bits - 1);
    const uint64_t high = (uint64_t{1} << word_bits) - 1;
    for (int32_t i = 0; i < 2000; ++i) {
      const uint64_t between = low + (high == low ? 0 : random.bits() % (high - low + 1));
      const uint32_t word = static_cast<uint32_t>(i == 0 ? low : i == 1 ? high : between);
      const float noise = scalar::gumbel_noise(scalar::wrap(word)).v;
      require(noise <= most_noise(word), "no noise is larger than its word allows");
      require(word_bits > 28 || most_noise(word) <= noise + 0.8f, "the bound is near");
    }
  }
}

SDENGINE_FUZZ(cuda_tree_verify, 6) {
  Growth growth(random, true);
  grow(growth, random);
  Selection chosen(growth, random);
  const int32_t batch = growth.batch, depth = random.integer(1, 5);
  select_grown(growth, chosen,
               Exact<float>(chosen.pending[batch] + batch * size_t(growth.nodes), 0.0f));
  const int32_t vocab =
      random.chance(0.5f) ? random.integer(4096, 4100) : random.integer(growth.candidates, 40);
  Exact<int32_t> starts(batch, 0), wants(batch, 1), tree_starts(batch, 9), top_k(batch);
  Exact<float> temperature(batch), top_p(batch), min_p(batch);
  Exact<int64_t> seeds(batch);
  int32_t rows = 0;
  for (int32_t b = 0; b < batch; ++b) {
    starts[b] = rows;
    rows += b < growth.live[0] ? chosen.tree.view.num_nodes[b] + 1 : 0;
    wants[b] = random.chance(0.2f) ? random.integer(0, 2) : 1;
    temperature[b] = random.chance(0.2f) ? 0.0f : 0.5f + random.unit();
    top_k[b] = random.chance(0.4f) ? random.integer(1, 60) : 0;
    top_p[b] = random.chance(0.4f) ? random.unit() : 1.0f;
    min_p[b] = random.chance(0.3f) ? 0.2f * random.unit() : 0.0f;
    seeds[b] = static_cast<int64_t>(random.bits());
  }
  Exact<float> logits(static_cast<size_t>(rows) * vocab);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = 4.0f * random.unit() + (i % vocab < 7 ? 3.0f : 0.0f);
  if (random.chance(0.4f)) {  // one token of a row beyond the reach of most warps
    for (int32_t r = 0; r < rows; ++r)
      logits[size_t(r) * vocab + random.integer(0, vocab - 1)] += 10.0f + 30.0f * random.unit();
  }
  TreeVerifyArgs args{};
  args.tree = chosen.tree.view;
  args.logit_starts = starts.get();
  args.wants_logits = wants.get();
  args.num_seqs = growth.live.get();
  args.logits = logits.get();
  args.vocab_size = vocab;
  args.tree_starts = tree_starts.get();
  args.tables = {temperature.get(), top_k.get(), top_p.get(), min_p.get()};
  args.seeds = seeds.get();
  args.proposals = {growth.store_tokens.get(), growth.store_probs.get(), growth.candidates};
  args.is_rejection = random.chance(0.6f);
  const Verdict team(batch, depth), alone(batch, depth);
  verify(args, alone, 1);
  verify(args, team, 5 * batch);
  require(std::memcmp(team.ints.get(), alone.ints.get(), team.ints.size() * sizeof(int32_t)) == 0,
          "a team gives the bits of one block");
  for (int32_t b = 0; b < growth.live[0]; ++b)
    require_chain(chosen.tree.view.sequence(b), walk_of(team.walk(), b), team.accepted()[b]);
}

}  // namespace
