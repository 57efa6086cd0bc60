// Keyed noise: what is drawn depends on (request seed, position, purpose, extra, index) and on
// nothing else.
//
// counter = (index / 4, position, purpose, extra), word index % 4, key = the request's 64-bit seed.
#pragma once

#include "sdengine/philox.h"

namespace sdengine {

enum class Purpose : uint32_t {
  kTarget = 0,  // position of the token being drawn; index = token id
  kDraft = 1,   // position of the tree's root; extra = draft slot of the node whose children are
                // drawn, 0 for the root; index = token id
  kCoin =
      2,  // position of the root; extra = creation id of the parent; index = ordinal of the child
  kFinal =
      3,  // position of the root; extra = creation id of the last accepted node; index = token id
};

struct NoiseKey {
  uint64_t seed;
  int32_t position;
  Purpose purpose;
  int32_t extra;
};

constexpr float kMaxGumbel = 22.9f;  // no Gumbel noise is larger: -log(2^-33) = 22.874

SDE_HD inline uint32_t random_word(const NoiseKey& key, int32_t index) {
  const uint32_t i = static_cast<uint32_t>(index);
  return philox4x32_10(i / 4, static_cast<uint32_t>(key.position),
                       static_cast<uint32_t>(key.purpose), static_cast<uint32_t>(key.extra),
                       key.seed)
      .words[i % 4];
}

SDE_HD inline float gumbel(const NoiseKey& key, int32_t index) {
  return scalar::gumbel_noise(scalar::wrap(random_word(key, index))).v;
}

// Uniform in (0, 1), never 0 or 1: a certain event stays certain.
SDE_HD inline double uniform(const NoiseKey& key, int32_t index) {
  return (static_cast<double>(random_word(key, index)) + 0.5) * 2.3283064365386962890625e-10;
}

// What a token is ranked by: its logit below the row's best, over the temperature, plus noise.
// Rounded step by step.
SDE_HD inline float perturbed_score(float logit, float row_max, float inverse_temperature,
                                    float noise) {
  const scalar::Vec scaled =
      (scalar::Vec{logit} - scalar::Vec{row_max}) * scalar::Vec{inverse_temperature};
  return (scaled + scalar::Vec{noise}).v;
}

// (score, token) order: the larger score first, the lower token id on ties.
SDE_HD inline bool ranks_before(float score_a, int32_t token_a, float score_b, int32_t token_b) {
  return score_a > score_b || (score_a == score_b && token_a < token_b);
}

}  // namespace sdengine
