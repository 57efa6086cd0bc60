#include "cpu/bind.h"
#include "cpu/machine_limits.h"
#include "cpu/without_gil.h"

namespace sdengine {

void bind_machine_limits(pybind11::module_& module) {
  module.def("measure_read", [](ThreadPool& pool, uintptr_t data, int64_t bytes, int streams,
                                bool fetches, int repeats) {
    return without_gil([&] {
      return measure_read(pool, pointer<const void>(data), bytes, {streams, fetches}, repeats);
    });
  });
  module.def("measure_arithmetic", [](ThreadPool& pool, bool bf16_dot, double milliseconds,
                                      int repeats) {
    return without_gil([&] { return measure_arithmetic(pool, bf16_dot, milliseconds, repeats); });
  });
  module.def("measure_barriers", [](ThreadPool& pool, int repeats) {
    return without_gil([&] { return measure_barriers(pool, repeats); });
  });
}

}  // namespace sdengine
