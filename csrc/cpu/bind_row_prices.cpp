#include "cpu/bind.h"
#include "cpu/row_prices.h"

namespace sdengine {

void bind_row_prices(pybind11::module_& module) {
  module.def("write_row_prices",
             [](const std::vector<int>& rows, const std::vector<double>& seconds,
                double tokens_per_s, uintptr_t prices, int64_t num_prices) {
               write_row_prices(rows, seconds, tokens_per_s, pointer<float>(prices), num_prices);
             });
}

}  // namespace sdengine
