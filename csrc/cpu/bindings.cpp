// The Python module sdengine.kernels._cpu: pool, program, CPU features. Ops bind themselves in
// bind_<op>.cpp.
#include "cpu/bind.h"
#include "cpu/cpu_features.h"
#include "cpu/without_gil.h"

namespace py = pybind11;

namespace sdengine {

// The list of ops is made by the build from the names of csrc/cpu/bind_<op>.cpp.
#define SDENGINE_OP(name) void bind_##name(py::module_& module);
#include "ops.inc"
#undef SDENGINE_OP

}  // namespace sdengine

PYBIND11_MODULE(_cpu, module) {
  using namespace sdengine;
  module.doc() = "CPU kernels of sdengine, recorded into programs and replayed natively.";

  py::class_<ThreadPool>(module, "ThreadPool")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &ThreadPool::num_threads)
      .def("prepare", &ThreadPool::prepare, py::arg("max_wait_us"));

  py::class_<ReplayCopies>(module, "ReplayCopies")
      .def(py::init<>())
      .def(
          "add",
          [](ReplayCopies& copies, uintptr_t source, size_t size, uintptr_t rows) {
            copies.add(reinterpret_cast<const char*>(source), size, reinterpret_cast<char*>(rows));
          },
          py::arg("source"), py::arg("size"), py::arg("rows"));

  py::class_<Program>(module, "Program")
      .def(py::init<>())
      .def("__len__", &Program::size)
      .def("begin_if",
           [](Program& program, uintptr_t count) {
             program.begin_if(reinterpret_cast<const int32_t*>(count));
           })
      .def("end_if", &Program::end_if)
      .def("stop_at_zero",
           [](Program& program, uintptr_t count) {
             program.stop_at_zero(reinterpret_cast<const int32_t*>(count));
           })
      .def(
          "replay",
          [](const Program& program, ThreadPool& pool) {
            without_gil([&] { program.replay(pool); });
          },
          py::arg("pool"))
      .def(
          "replay_in_a_row",
          [](const Program& program, ThreadPool& pool, int num_replays,
             const ReplayCopies& copies) {
            return without_gil([&] { return program.replay_in_a_row(pool, num_replays, copies); });
          },
          py::arg("pool"), py::arg("num_replays"), py::arg("copies"))
      .def(
          "replay_timed",
          [](const Program& program, ThreadPool& pool) {
            return without_gil([&] { return program.replay_timed(pool); });
          },
          py::arg("pool"));

  module.def("selected_isa", [] { return std::string(isa_name(selected_isa())); });
  module.def("fastest_isa", [] { return std::string(isa_name(fastest_isa())); });
  module.def("detected_isa", [] { return std::string(isa_name(detected_isa())); });
  module.def("starts_two_dots", starts_two_dots);

#define SDENGINE_OP(name) bind_##name(module);
#include "ops.inc"
#undef SDENGINE_OP
}
