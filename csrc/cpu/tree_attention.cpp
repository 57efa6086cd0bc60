#include "cpu/tree_attention.h"

#include "cpu/isa_variants.h"

namespace sdengine {

SDENGINE_ISA_VARIANTS(tree_attention, tree_attention_kernel, TreeAttentionArgs)

}  // namespace sdengine
