#include "cpu/bind.h"
#include "cpu/rope_kv_append.h"

namespace sdengine {

void bind_rope_kv_append(pybind11::module_& module) {
  module.def(
      "rope_kv_append",
      [](Program& program, uintptr_t qkv, uintptr_t cos_sin, uintptr_t positions, uintptr_t slots,
         uintptr_t kv_cache, int cache_format, uintptr_t num_rows, uintptr_t q_norm,
         uintptr_t k_norm, float eps, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
         int64_t half_rotary_dim, int64_t block_size) {
        program.append(
            rope_kv_append,
            RopeKvAppendArgs{pointer<float>(qkv), pointer<const float>(cos_sin),
                             pointer<const int32_t>(positions), pointer<const int32_t>(slots),
                             pointer<void>(kv_cache), static_cast<Format>(cache_format),
                             pointer<const int32_t>(num_rows), pointer<const float>(q_norm),
                             pointer<const float>(k_norm), eps, num_heads, num_kv_heads, head_dim,
                             half_rotary_dim, block_size});
      });
}

}  // namespace sdengine
