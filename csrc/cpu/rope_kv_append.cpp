#include "cpu/rope_kv_append.h"

#include "cpu/isa_variants.h"

namespace sdengine {

SDENGINE_ISA_VARIANTS(rope_kv_append, rope_kv_append_kernel, RopeKvAppendArgs)

}  // namespace sdengine
