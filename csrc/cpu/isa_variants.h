// One op, compiled once per instruction set, chosen once per process.
#pragma once

#include "cpu/cpu_features.h"

// SDENGINE_ISA_VARIANTS declares `kernel` of every instruction set and defines `op`, which runs the
// one this process selected. Each variant is compiled from <op>.inl by <op>_portable.cpp,
// <op>_avx2.cpp and <op>_avx512.cpp; SDENGINE_DOT_VARIANTS has one more, of processors with dot
// products of bfloat16, by <op>_avx512_bf16.cpp.
#define SDENGINE_ISA_VARIANT(isa, kernel, Args)  \
  inline namespace isa {                         \
  void kernel(const Args& args, Worker& worker); \
  }
#if defined(__x86_64__)
#define SDENGINE_CHOSEN_VARIANT(op, Args, isa, ...)                  \
  void op(const Args& args, Worker& worker) {                        \
    using Kernel = void (*)(const Args&, Worker&);                   \
    static const Kernel kVariants[] = {__VA_ARGS__};                 \
    static const Kernel chosen = kVariants[static_cast<int>(isa())]; \
    chosen(args, worker);                                            \
  }
#define SDENGINE_ISA_VARIANTS(op, kernel, Args)                                                  \
  SDENGINE_ISA_VARIANT(isa_portable, kernel, Args)                                               \
  SDENGINE_ISA_VARIANT(isa_avx2, kernel, Args)                                                   \
  SDENGINE_ISA_VARIANT(isa_avx512, kernel, Args)                                                 \
  SDENGINE_CHOSEN_VARIANT(op, Args, selected_vector_isa, isa_portable::kernel, isa_avx2::kernel, \
                          isa_avx512::kernel)
#define SDENGINE_DOT_VARIANTS(op, kernel, Args)                                           \
  SDENGINE_ISA_VARIANT(isa_portable, kernel, Args)                                        \
  SDENGINE_ISA_VARIANT(isa_avx2, kernel, Args)                                            \
  SDENGINE_ISA_VARIANT(isa_avx512, kernel, Args)                                          \
  SDENGINE_ISA_VARIANT(isa_avx512_bf16, kernel, Args)                                     \
  SDENGINE_CHOSEN_VARIANT(op, Args, selected_isa, isa_portable::kernel, isa_avx2::kernel, \
                          isa_avx512::kernel, isa_avx512_bf16::kernel)
#else
#define SDENGINE_ISA_VARIANTS(op, kernel, Args)    \
  SDENGINE_ISA_VARIANT(isa_portable, kernel, Args) \
  void op(const Args& args, Worker& worker) { isa_portable::kernel(args, worker); }
#define SDENGINE_DOT_VARIANTS SDENGINE_ISA_VARIANTS
#endif
