#include "cpu/bind.h"
#include "cpu/silu_and_mul.h"

namespace sdengine {

void bind_silu_and_mul(pybind11::module_& module) {
  module.def("silu_and_mul", [](Program& program, uintptr_t x, uintptr_t out, uintptr_t num_rows,
                                int64_t ffn_size) {
    program.append(silu_and_mul, SiluAndMulArgs{pointer<const float>(x), pointer<float>(out),
                                                pointer<const int32_t>(num_rows), ffn_size});
  });
}

}  // namespace sdengine
