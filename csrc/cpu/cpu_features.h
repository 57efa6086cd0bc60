// Which instruction set the kernels of this process use: chosen once, at run time.
#pragma once

namespace sdengine {

enum class Isa {
  kPortable = 0,
  kAvx2 = 1,
  kAvx512 = 2
};  // kAvx2: +FMA +F16C; kAvx512: F BW VL DQ BF16

// The best the machine has, unless SDENGINE_ISA (portable | avx2 | avx512) asks for less.
// Throws std::runtime_error when it asks for more than the machine or the build has, or for an
// unknown name.
Isa selected_isa();
Isa detected_isa();
const char* isa_name(Isa isa);

}  // namespace sdengine
