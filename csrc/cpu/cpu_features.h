// Which instruction set the kernels of this process use: chosen once, at run time.
#pragma once

namespace sdengine {

enum class Isa {
  kPortable = 0,
  kAvx2 = 1,       // and FMA, F16C
  kAvx512 = 2,     // F BW VL DQ
  kAvx512Bf16 = 3  // the same, but dot products of bfloat16 in `linear` and `tree_attention`
};

// Whether an AMD core starts two dot products of bfloat16, or multiply-adds, of 512 bits in a cycle
// (from Zen 5 on) and not one.
bool starts_two_dots();

// The one in use: the fastest, unless SDENGINE_ISA (portable | avx2 | avx512 | avx512_bf16) asks
// for another. Throws std::runtime_error when it asks for more than the machine or the build has,
// or for an unknown name.
Isa selected_isa();
// The one that is fastest on this machine.
Isa fastest_isa();
// All that the machine has.
Isa detected_isa();
// The same for kernels without dot products of bfloat16: at most kAvx512.
Isa selected_vector_isa();
const char* isa_name(Isa isa);

}  // namespace sdengine
