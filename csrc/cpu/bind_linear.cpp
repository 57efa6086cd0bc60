#include <tuple>

#include "cpu/bind.h"
#include "cpu/linear.h"
#include "cpu/packed_weight.h"
#include "cpu/without_gil.h"

namespace sdengine {
namespace {

using PartList = std::vector<std::tuple<uintptr_t, int64_t, int64_t>>;  // address, rows, row stride

void pack(ThreadPool& pool, const PartList& parts, int source_format, uintptr_t packed,
          int packed_format, int64_t num_inputs, int64_t num_outputs, bool interleave_gate_up) {
  PackArgs args{{},
                static_cast<Format>(source_format),
                static_cast<Format>(packed_format),
                pointer<void>(packed),
                num_inputs,
                num_outputs,
                interleave_gate_up};
  for (const auto& [data, rows, stride] : parts)
    args.parts.push_back({pointer<const void>(data), rows, stride});
  without_gil([&] { pool.run([&](Worker& worker) { pack_weight(args, worker); }); });
}

void append_linear(Program& program, uintptr_t x, int x_format, uintptr_t weight, int weight_format,
                   uintptr_t out, int out_format, uintptr_t num_rows, uintptr_t bias,
                   uintptr_t rows, uintptr_t norm, float eps, int64_t num_inputs,
                   int64_t num_outputs, bool accumulate, bool silu_gate) {
  const LinearArgs args{pointer<const void>(x),
                        static_cast<Format>(x_format),
                        packed_weight(pointer<const void>(weight),
                                      static_cast<Format>(weight_format), num_inputs, num_outputs),
                        pointer<void>(out),
                        static_cast<Format>(out_format),
                        pointer<const int32_t>(num_rows),
                        pointer<const float>(bias),
                        pointer<const int32_t>(rows),
                        pointer<const float>(norm),
                        eps,
                        accumulate,
                        silu_gate};
  program.append(linear, args, args.weight);
}

}  // namespace

void bind_linear(pybind11::module_& module) {
  module.def("linear", append_linear);
  module.def("strips_together",
             [](int format) { return strips_together(static_cast<Format>(format)); });
  module.def("pack_weight", pack);
}

}  // namespace sdengine
