#include "cpu/bind.h"
#include "cpu/gather_pending.h"

namespace sdengine {

void bind_gather_pending(pybind11::module_& module) {
  module.def(
      "gather_pending", [](Program& program, uintptr_t history, int64_t max_history,
                           uintptr_t computed_lens, uintptr_t pending_lens, uintptr_t num_seqs,
                           int32_t capacity, uintptr_t pending_tokens, uintptr_t cu_pending) {
        program.append(
            "gather_pending", gather_pending,
            GatherPendingArgs{
                pointer<const int32_t>(history), max_history, pointer<const int32_t>(computed_lens),
                pointer<const int32_t>(pending_lens), pointer<const int32_t>(num_seqs), capacity,
                pointer<int32_t>(pending_tokens), pointer<int32_t>(cu_pending)});
      });
}

}  // namespace sdengine
