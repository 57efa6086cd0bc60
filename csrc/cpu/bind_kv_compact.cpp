#include "cpu/bind.h"
#include "cpu/kv_compact.h"

namespace sdengine {

void bind_kv_compact(pybind11::module_& module) {
  module.def("kv_compact", [](Program& program, uintptr_t kv_cache, int64_t element_bytes,
                              uintptr_t block_tables, int64_t max_blocks, uintptr_t move_src,
                              int64_t max_moves, uintptr_t move_dst_start, uintptr_t num_moves,
                              uintptr_t num_seqs, int64_t num_layers, int64_t num_blocks,
                              int64_t num_kv_heads, int64_t block_size, int64_t head_dim) {
    program.append(
        "kv_compact", kv_compact,
        KvCompactArgs{pointer<void>(kv_cache), element_bytes, pointer<const int32_t>(block_tables),
                      max_blocks, pointer<const int32_t>(move_src), max_moves,
                      pointer<const int32_t>(move_dst_start), pointer<const int32_t>(num_moves),
                      pointer<const int32_t>(num_seqs), num_layers, num_blocks, num_kv_heads,
                      block_size, head_dim});
  });
}

}  // namespace sdengine
