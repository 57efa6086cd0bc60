// embed: gathers embedding rows as float32.
#pragma once

#include "cpu/number_format.h"
#include "cpu/worker.h"

namespace sdengine {

struct EmbedArgs {
  const int32_t* tokens;    // [N]
  const void* weight;       // [V, E]
  Format format;            // of the weight
  float* out;               // [N, E]
  const int32_t* num_rows;  // [1]
  int64_t hidden_size;
};

void embed(const EmbedArgs& args, Worker& worker);

}  // namespace sdengine
