#include "cpu/bind.h"
#include "cpu/timestamp.h"

namespace sdengine {

void bind_timestamp(pybind11::module_& module) {
  module.def("timestamp", [](Program& program, uintptr_t out_ns) {
    program.append("timestamp", timestamp, TimestampArgs{pointer<int64_t>(out_ns)});
  });
}

}  // namespace sdengine
