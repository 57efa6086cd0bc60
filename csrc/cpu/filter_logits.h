// filter_logits: masks the tokens that top-k, top-p and min-p leave out, in place.
#pragma once

#include "cpu/row_plan.h"
#include "cpu/worker.h"

namespace sdengine {

struct FilterLogitsArgs {
  float* logits;           // [N, V]
  const int32_t* rows;     // [N] packed row of each logits row, or nullptr: the same row
  const int32_t* row_seq;  // by packed row
  SamplingTablesView tables;
  const int32_t* num_rows;  // [1]
  int64_t vocab_size;
};

void filter_logits(const FilterLogitsArgs& args, Worker& worker);

}  // namespace sdengine
