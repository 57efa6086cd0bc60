// rms_norm: root-mean-square normalisation of each row.
#pragma once

#include "cpu/worker.h"

namespace sdengine {

struct RmsNormArgs {
  const float* x;           // [N, E]
  const float* weight;      // [E]
  float* out;               // [N, E]; may be x
  const int32_t* num_rows;  // [1]
  int64_t hidden_size;
  float eps;
};

void rms_norm(const RmsNormArgs& args, Worker& worker);

}  // namespace sdengine
