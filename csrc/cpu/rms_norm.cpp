#include "cpu/rms_norm.h"

#include "cpu/isa_variants.h"

namespace sdengine {

SDENGINE_ISA_VARIANTS(rms_norm, rms_norm_kernel, RmsNormArgs)

}  // namespace sdengine
