#include "cpu/tree_attention.h"

#include "cpu/isa_variants.h"

namespace sdengine {

SDENGINE_DOT_VARIANTS(tree_attention, tree_attention_kernel, TreeAttentionArgs)

}  // namespace sdengine
