#include "cpu/acceptance_fit.h"
#include "cpu/bind.h"

namespace sdengine {

void bind_acceptance_fit(pybind11::module_& module) {
  module.def("refresh_acceptance", [](uintptr_t tables, uintptr_t tried, uintptr_t accepted,
                                      uintptr_t kinds, uintptr_t counted, uintptr_t added,
                                      uintptr_t seen, uintptr_t rates, uintptr_t curves,
                                      int num_slots, bool by_rank, double kept) {
    refresh_acceptance(
        AcceptanceTables{pointer<float>(tables),
                         {pointer<const int32_t>(tried), pointer<const int32_t>(accepted)},
                         pointer<const int32_t>(kinds),
                         pointer<int32_t>(counted),
                         pointer<int64_t>(added),
                         pointer<double>(seen),
                         pointer<float>(rates),
                         pointer<AcceptanceCurve>(curves),
                         num_slots,
                         by_rank},
        kept);
  });
}

}  // namespace sdengine
