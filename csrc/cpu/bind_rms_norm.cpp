#include "cpu/bind.h"
#include "cpu/rms_norm.h"

namespace sdengine {

void bind_rms_norm(pybind11::module_& module) {
  module.def("rms_norm", [](Program& program, uintptr_t x, uintptr_t weight, uintptr_t out,
                            uintptr_t num_rows, int64_t hidden_size, float eps) {
    program.append(rms_norm, RmsNormArgs{pointer<const float>(x), pointer<const float>(weight),
                                         pointer<float>(out), pointer<const int32_t>(num_rows),
                                         hidden_size, eps});
  });
}

}  // namespace sdengine
