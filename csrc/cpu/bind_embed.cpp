#include "cpu/bind.h"
#include "cpu/embed.h"

namespace sdengine {

void bind_embed(pybind11::module_& module) {
  module.def("embed", [](Program& program, uintptr_t tokens, uintptr_t weight, int weight_format,
                         uintptr_t out, uintptr_t num_rows, int64_t hidden_size) {
    program.append(embed, EmbedArgs{pointer<const int32_t>(tokens), pointer<const void>(weight),
                                    static_cast<Format>(weight_format), pointer<float>(out),
                                    pointer<const int32_t>(num_rows), hidden_size});
  });
}

}  // namespace sdengine
