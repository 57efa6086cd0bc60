// What penalties do to one logit.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

struct Penalties {
  float repetition;  // divides positive, multiplies negative logits of tokens seen in prompt or
                     // output
  float presence;    // subtracted once from tokens seen in the output
  float frequency;   // subtracted per occurrence in the output
};

SDE_HD inline bool is_neutral(const Penalties& p) {
  return p.repetition == 1.0f && p.presence == 0.0f && p.frequency == 0.0f;
}

SDE_HD inline float penalized(float logit, const Penalties& p, int32_t prompt_count,
                              int32_t output_count) {
  const float scaled = logit > 0.0f ? logit / p.repetition : logit * p.repetition;
  const float base = prompt_count + output_count > 0 ? scaled : logit;
  const float present = output_count > 0 ? p.presence : 0.0f;
  return base - (p.frequency * static_cast<float>(output_count) + present);
}

}  // namespace sdengine
