#include "cpu/bind.h"
#include "cpu/filter_logits.h"

namespace sdengine {

void bind_filter_logits(pybind11::module_& module) {
  module.def("filter_logits", [](Program& program, uintptr_t logits, uintptr_t rows,
                                 uintptr_t row_seq, uintptr_t temperature, uintptr_t top_k,
                                 uintptr_t top_p, uintptr_t min_p, uintptr_t, uintptr_t num_rows,
                                 int64_t vocab_size) {
    const SamplingTablesView tables = {pointer<const float>(temperature),
                                       pointer<const int32_t>(top_k), pointer<const float>(top_p),
                                       pointer<const float>(min_p)};
    program.append(filter_logits,
                   FilterLogitsArgs{pointer<float>(logits), pointer<const int32_t>(rows),
                                    pointer<const int32_t>(row_seq), tables,
                                    pointer<const int32_t>(num_rows), vocab_size});
  });
}

}  // namespace sdengine
