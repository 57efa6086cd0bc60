#include "cpu/silu_and_mul.h"

#include "cpu/isa_variants.h"

namespace sdengine {

SDENGINE_ISA_VARIANTS(silu_and_mul, silu_and_mul_kernel, SiluAndMulArgs)

}  // namespace sdengine
