#include "cpu/bind.h"
#include "cpu/machine_limits.h"

namespace sdengine {

void bind_machine_limits(pybind11::module_& module) {
  namespace py = pybind11;
  module.def(
      "measure_read",
      [](ThreadPool& pool, uintptr_t data, int64_t bytes, int streams, bool fetches, int repeats) {
        return measure_read(pool, pointer<const void>(data), bytes, {streams, fetches}, repeats);
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("measure_arithmetic", &measure_arithmetic, py::call_guard<py::gil_scoped_release>());
  module.def("measure_barriers", &measure_barriers, py::call_guard<py::gil_scoped_release>());
}

}  // namespace sdengine
