// silu_and_mul: the gated activation of a feed-forward block.
#pragma once

#include "cpu/worker.h"

namespace sdengine {

struct SiluAndMulArgs {
  const float* x;           // [N, 2F]: gate | up
  float* out;               // [N, F]
  const int32_t* num_rows;  // [1]
  int64_t ffn_size;
};

void silu_and_mul(const SiluAndMulArgs& args, Worker& worker);

}  // namespace sdengine
