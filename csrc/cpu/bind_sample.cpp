#include "cpu/bind.h"
#include "cpu/sample.h"
#include "cpu/vocab_passes.h"

namespace sdengine {

void bind_sample(pybind11::module_& module) {
  module.def("vocab_lanes", [] { return vocab_passes().lanes; });
  module.def("sample", [](Program& program, uintptr_t logits, uintptr_t rows, uintptr_t row_seq,
                          uintptr_t positions, uintptr_t temperature, uintptr_t top_k,
                          uintptr_t top_p, uintptr_t min_p, uintptr_t seeds, uintptr_t out_tokens,
                          uintptr_t num_rows, int64_t capacity, int64_t vocab_size) {
    const SamplingTablesView tables = {pointer<const float>(temperature),
                                       pointer<const int32_t>(top_k), pointer<const float>(top_p),
                                       pointer<const float>(min_p)};
    program.append(sample,
                   SampleArgs{pointer<const float>(logits), pointer<const int32_t>(rows),
                              pointer<const int32_t>(row_seq), pointer<const int32_t>(positions),
                              tables, pointer<const int64_t>(seeds), pointer<int32_t>(out_tokens),
                              pointer<const int32_t>(num_rows), vocab_size,
                              make_sample_scratch(capacity, vocab_size)});
  });
}

}  // namespace sdengine
