#include "cpu/bind.h"
#include "cpu/tree_attention.h"

namespace sdengine {

void bind_tree_attention(pybind11::module_& module) {
  module.def(
      "tree_attention",
      [](Program& program, uintptr_t qkv, uintptr_t kv_cache, int cache_format,
         uintptr_t block_tables, int64_t max_blocks, uintptr_t positions, uintptr_t visible_lens,
         uintptr_t ancestor_mask, int64_t mask_words, uintptr_t tree_starts, uintptr_t cu_rows,
         uintptr_t num_rows, uintptr_t out, int out_format, uintptr_t scratch,
         int64_t scratch_floats, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
         int64_t block_size, int64_t window, float scale) {
        program.append(tree_attention, TreeAttentionArgs{pointer<const float>(qkv),
                                                         pointer<const void>(kv_cache),
                                                         static_cast<Format>(cache_format),
                                                         pointer<const int32_t>(block_tables),
                                                         max_blocks,
                                                         pointer<const int32_t>(positions),
                                                         pointer<const int32_t>(visible_lens),
                                                         pointer<const int64_t>(ancestor_mask),
                                                         mask_words,
                                                         pointer<const int32_t>(tree_starts),
                                                         pointer<const int32_t>(cu_rows),
                                                         pointer<const int32_t>(num_rows),
                                                         pointer<void>(out),
                                                         static_cast<Format>(out_format),
                                                         pointer<float>(scratch),
                                                         scratch_floats,
                                                         num_heads,
                                                         num_kv_heads,
                                                         head_dim,
                                                         block_size,
                                                         window,
                                                         scale});
      });
}

}  // namespace sdengine
