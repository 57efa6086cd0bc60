// The target's law at one node of a tree, by a team of blocks: what csrc/cpu/target_row.h is on a
// CPU. Every method is called by all threads of the team with the same arguments and returns the
// same everywhere, so that the team walks a tree as one thread would.
//
// A thread looks after groups of four tokens, which share one Philox block. The bits of the result
// are those of the CPU: scores are rounded operation by operation, weights are added as integers,
// thresholds are values of the row.
#pragma once

#include "cuda/team.cuh"
#include "sdengine/noise.h"

namespace sdengine {

constexpr int32_t kGroup = 4;
constexpr int32_t kLevels = 6;
constexpr int32_t kGroupsInFlight = 4;  // 64 bytes a thread

// Floats as integers of the same order; -0 counts as 0. None is 0.
__device__ inline uint32_t order_bits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_order_bits(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// At least the Gumbel noise of a word, -log(-log(1 - u)) with u = (word + 1/2) 2^-32: it is at most
// -log u, and u at least 2^(k - 33) for a word of k bits. The slack covers what logarithms and
// scores are rounded by.
__device__ inline float most_noise(uint32_t word) {
  return 0.6931472f * static_cast<float>(1 + __clz(static_cast<int>(word))) + 1e-3f;
}

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

// (score, token) as one integer: the larger score first, the lower token on ties. 0: no token.
__device__ inline uint64_t score_key(float score, int32_t token) {
  return static_cast<uint64_t>(order_bits(score)) << 32 |
         (0xffffffffu - static_cast<uint32_t>(token));
}
__device__ inline int32_t key_token(uint64_t key) {
  return key == 0 ? -1 : static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// What reads whole rows is not inlined: the walk calls it from many places, and the assembler took
// fifteen seconds over their copies.
class DeviceRow {
 public:
  // `logits`: the root's row, those of the nodes follow; `shared_probs`: kMaxSupport doubles of
  // shared memory.
  __device__ DeviceRow(Team* team, const float* logits, int32_t vocab_size,
                       const SamplingTablesView& tables, int64_t b, double* shared_probs)
      : team_(team),
        root_row_(logits),
        vocab_size_(vocab_size),
        tables_(tables),
        b_(b),
        shared_probs_(shared_probs),
        is_aligned_(vocab_size % kGroup == 0 &&
                    reinterpret_cast<uintptr_t>(logits) % sizeof(float4) == 0) {}

  // Plans the node's row; false when nothing can be drawn from it.
  __device__ __noinline__ bool load(int32_t node) {
    row_ = root_row_ + static_cast<int64_t>(node) * vocab_size_;
    total_ = 0.0;
    constexpr uint64_t kNan = ~uint64_t{0};
    uint64_t best = 0;
    each_token<kGroupsInFlight>([&](int32_t token, float z) {
      const uint64_t key = z == z ? score_key(z, token) : kNan;
      best = key > best ? key : best;
    });
    own_max_ = static_cast<uint32_t>(best >> 32);
    best = team_->most(best);
    const float max = from_order_bits(static_cast<uint32_t>(best >> 32));
    if (best == kNan || !(max - max == 0.0f)) return false;
    const float temperature = tables_.temperature[b_];
    plan_.scale = row_scale(max, temperature);
    plan_.argmax = key_token(best);
    plan_.is_greedy = temperature < kGreedyTemperature;
    plan_.threshold = plan_.is_greedy ? max : allowed_threshold();
    return true;
  }

  // Token of the loaded row by the noise of the key: what `sample` draws.
  __device__ __noinline__ int32_t sample(const NoiseKey& key) {
    if (plan_.is_greedy) return plan_.argmax;
    const float bound = perturbed_score(plan_.scale.max, plan_.scale.max,
                                        plan_.scale.inverse_temperature, gumbel(key, plan_.argmax));
    return key_token(team_->most(race(key, bound, [](int32_t) { return false; })));
  }

  // Target probability of a token under the loaded row.
  __device__ double probability(int32_t token) {
    if (!(row_[token] >= plan_.threshold)) return 0.0;
    need_total();
    return weight_of(row_[token]) / total_;
  }

  // Fills in the target's probabilities of the law's support, one token a thread.
  __device__ void fill(NodeLaw* law) {
    const Block& block = team_->block();
    need_total();
    block.sync();
    for (int32_t i = block.rank(); i < law->count; i += block.size()) {
      const float z = row_[law->tokens[i]];
      shared_probs_[i] = z >= plan_.threshold ? weight_of(z) / total_ : 0.0;
    }
    block.sync();
    for (int32_t i = 0; i < law->count; ++i) law->target_probs[i] = shared_probs_[i];
  }

  // A token from what the residual leaves of the loaded row.
  __device__ int32_t draw(const NodeLaw& law, const Residual& residual, const NoiseKey& key) {
    const bool is_whole = residual.num_rejected == 0 && residual.num_struck == 0;
    if (is_whole || residual.is_collapsed) return sample(key);
    uint64_t best = race(key, minus_infinity(), [&](int32_t token) {
      return support_index(law, token) >= 0 || is_struck(residual, token);
    });
    for (int32_t i = team_->rank(); i < law.count; i += team_->num_threads()) {
      const uint64_t own = support_key(law, residual, i, key);
      best = own > best ? own : best;
    }
    return key_token(team_->most(best));
  }

 private:
  // Logits of kCount groups of four, `step` tokens apart; -inf past the end. One branch for all of
  // them: with one for each, the compiler waited for a group before it asked for the next.
  template <int kCount>
  __device__ void read_groups(int32_t first, int32_t step, float (*z)[kGroup]) const {
    const float none = minus_infinity();
    if (is_aligned_) {
#pragma unroll
      for (int32_t i = 0; i < kCount; ++i) {
        const int32_t at = first + i * step;
        float4 four = {none, none, none, none};
        if (at < vocab_size_) four = *reinterpret_cast<const float4*>(row_ + at);
        z[i][0] = four.x, z[i][1] = four.y, z[i][2] = four.z, z[i][3] = four.w;
      }
      return;
    }
#pragma unroll
    for (int32_t i = 0; i < kCount; ++i) {
      const int32_t at = first + i * step;
      for (int32_t j = 0; j < kGroup; ++j) z[i][j] = at + j < vocab_size_ ? row_[at + j] : none;
    }
  }

  // Calls take(token, logit) for this thread's tokens. Unrolled where nothing but memory is waited
  // for.
  template <int kUnroll = 1, class Take>
  __device__ void each_token(Take take) const {
    const int32_t step = team_->num_threads() * kGroup;
    for (int32_t first = team_->rank() * kGroup; first < vocab_size_; first += step * kUnroll) {
      float z[kUnroll][kGroup];
      read_groups<kUnroll>(first, step, z);
#pragma unroll
      for (int32_t i = 0; i < kUnroll; ++i)
        for (int32_t j = 0; j < kGroup; ++j)
          if (first + i * step + j < vocab_size_) take(first + i * step + j, z[i][j]);
    }
  }

  __device__ float scaled(float logit) const {
    return perturbed_score(logit, plan_.scale.max, plan_.scale.inverse_temperature, 0.0f);
  }
  __device__ float weight_of(float logit) const { return scalar::stable_exp({scaled(logit)}).v; }

  __device__ __noinline__ void need_total() {
    if (total_ != 0.0) return;
    uint64_t mass = 0;
    each_token([&](int32_t, float z) {
      if (z >= plan_.threshold) mass += token_mass(weight_of(z));
    });
    total_ = static_cast<double>(team_->sum(mass)) * kMassUnit;
  }

  __device__ float allowed_threshold() {
    float threshold = minus_infinity();
    const int32_t top_k = tables_.top_k[b_];
    if (top_k >= 1 && top_k < vocab_size_) threshold = top_k_threshold(top_k);
    if (tables_.top_p[b_] < 1.0f) threshold = top_p_threshold(threshold, tables_.top_p[b_]);
    if (tables_.min_p[b_] > 0.0f) {
      const float floor = min_p_threshold(plan_.scale, tables_.min_p[b_], tables_.temperature[b_]);
      threshold = threshold > floor ? threshold : floor;
    }
    return threshold;
  }

  // The k-th largest logit. k threads have one that reaches the k-th largest of all threads' best,
  // so what lies below that is never counted: without it, every logit of the row would be added to
  // the few bins that exponents come to.
  __device__ __noinline__ float top_k_threshold(int32_t k) {
    uint32_t low = 0;
    if (k <= num_busy_threads()) {
      auto own_best = [&](auto take) {
        if (own_max_ != 0) take(own_max_, 1);
      };
      low = team_->weighted_quantile(own_best, static_cast<uint64_t>(k));
    }
    return from_order_bits(team_->weighted_quantile(
        [&](auto take) {
          each_token([&](int32_t, float z) {
            if (order_bits(z) >= low) take(order_bits(z), 1);
          });
        },
        static_cast<uint64_t>(k)));
  }

  // Threads of the team that have tokens at all.
  __device__ int32_t num_busy_threads() const {
    const int32_t groups = (vocab_size_ + kGroup - 1) / kGroup;
    return groups < team_->num_threads() ? groups : team_->num_threads();
  }

  // Top-p on the renormalised set {logit >= floor}. One pass adds up the mass above a few levels;
  // then only tokens above the highest level that is enough are sorted into bins.
  __device__ __noinline__ float top_p_threshold(float floor, float top_p) {
    uint64_t mass[kLevels + 1] = {};
    each_token([&](int32_t, float z) {
      if (!(z >= floor)) return;
      const float distance = -scaled(z);
      const uint64_t own = token_mass(weight_of(z));
      for (int32_t i = 0; i < kLevels; ++i) mass[i] += distance <= level(i) ? own : 0;
      mass[kLevels] += own;
    });
    for (int32_t i = 0; i <= kLevels; ++i) mass[i] = team_->sum(mass[i]);
    const uint64_t needed = needed_mass(top_p, mass[kLevels]);
    int32_t enough = 0;
    while (enough < kLevels && mass[enough] < needed) ++enough;
    return from_order_bits(team_->weighted_quantile(
        [&](auto take) {
          each_token([&](int32_t, float z) {
            if (z >= floor && (enough == kLevels || -scaled(z) <= level(enough)))
              take(order_bits(z), token_mass(weight_of(z)));
          });
        },
        needed));
  }

  // 1, 2, 4, .. 32 temperatures below the best; what lies further below weighs nothing.
  __device__ static float level(int32_t i) { return static_cast<float>(1 << i); }

  // Whether a token of this logit could score `bound`; none of a lower logit can where it cannot.
  __device__ bool can_reach(float z, float bound) const {
    return z >= plan_.threshold && scaled(z) + kMaxGumbel >= bound;
  }

  // The largest logit of kGroupsInFlight groups.
  __device__ float largest_of_groups(int32_t first, int32_t step) const {
    float z[kGroupsInFlight][kGroup];
    read_groups<kGroupsInFlight>(first, step, z);
    float largest = z[0][0];
#pragma unroll
    for (int32_t i = 0; i < kGroupsInFlight; ++i)
      for (int32_t j = 0; j < kGroup; ++j) largest = z[i][j] > largest ? z[i][j] : largest;
    return largest;
  }

  // This thread's best token among the allowed that are not left out. What cannot reach `bound`, a
  // score known to be attained, is skipped: a warp whose best logits cannot does not read the row
  // again, groups are left out before their noise is drawn, tokens before their logarithms are. The
  // lanes of a warp tell one another how far they have come.
  template <class LeftOut>
  __device__ uint64_t race(const NoiseKey& key, float bound, LeftOut is_left_out) const {
    const bool may_win = own_max_ != 0 && can_reach(from_order_bits(own_max_), bound);
    if (!__any_sync(kWholeWarp, may_win)) return 0;
    uint64_t best = 0;
    const int32_t lane_first = team_->rank() % kWarpSize * kGroup;
    const int32_t step = team_->num_threads() * kGroup;
    for (int32_t base = team_->rank() * kGroup - lane_first; base < vocab_size_;
         base += step * kGroupsInFlight) {
      const int32_t first = base + lane_first;
      if (can_reach(largest_of_groups(first, step), bound)) {
        // Read anew, from the nearest cache: held in registers, every group has code of its own.
#pragma unroll 1
        for (int32_t i = 0; i < kGroupsInFlight && first + i * step < vocab_size_; ++i)
          enter(key, first + i * step, is_left_out, &best, &bound);
      }
      bound = from_order_bits(~__reduce_min_sync(kWholeWarp, ~order_bits(bound)));
    }
    return best;
  }

  // Lets a group of four into the race.
  template <class LeftOut>
  __device__ void enter(const NoiseKey& key, int32_t first, LeftOut is_left_out, uint64_t* best,
                        float* bound) const {
    float z[1][kGroup];
    read_groups<1>(first, 0, z);
    bool reaches = false;
    for (int32_t j = 0; j < kGroup; ++j) reaches |= can_reach(z[0][j], *bound);
    if (!reaches) return;
    const PhiloxBlock words = philox4x32_10(
        static_cast<uint32_t>(first / kGroup), static_cast<uint32_t>(key.position),
        static_cast<uint32_t>(key.purpose), static_cast<uint32_t>(key.extra), key.seed);
    for (int32_t j = 0; j < kGroup; ++j) {
      if (first + j >= vocab_size_ || !(z[0][j] >= plan_.threshold)) continue;
      if (!(scaled(z[0][j]) + most_noise(words.words[j]) >= *bound)) continue;
      const float noise = scalar::gumbel_noise(scalar::wrap(words.words[j])).v;
      const float score =
          perturbed_score(z[0][j], plan_.scale.max, plan_.scale.inverse_temperature, noise);
      const uint64_t own = score_key(score, first + j);
      if (own <= *best || !(z[0][j] - z[0][j] == 0.0f) || is_left_out(first + j)) continue;
      *best = own;
      *bound = score > *bound ? score : *bound;
    }
  }

  // Entry i of the support with what the residual keeps of it.
  __device__ uint64_t support_key(const NodeLaw& law, const Residual& residual, int32_t i,
                                  const NoiseKey& key) const {
    const int32_t token = law.tokens[i];
    const double weight = is_struck(residual, token) ? 0.0 : support_weight(law, residual, i);
    const float kept = weight > 0.0 ? static_cast<float>(weight / law.target_probs[i]) : 0.0f;
    if (kept < 1e-30f) return 0;
    const float score = perturbed_score(row_[token], plan_.scale.max,
                                        plan_.scale.inverse_temperature, gumbel(key, token));
    return score_key(score + scalar::stable_log({kept}).v, token);
  }

  Team* team_;
  const float* root_row_;
  int32_t vocab_size_;
  SamplingTablesView tables_;
  int64_t b_;
  double* shared_probs_;
  bool is_aligned_;  // rows can be read four logits at a time
  const float* row_ = nullptr;
  uint32_t own_max_ = 0;  // order_bits of this thread's largest logit; 0 without tokens
  RowPlan plan_{};
  double total_ = 0.0;  // mass of the allowed tokens; 0: not summed yet
};

__device__ inline void fill_target_probs(DeviceRow& row, NodeLaw* law) { row.fill(law); }

}  // namespace sdengine
