// One op, compiled once per instruction set, chosen once per process.
#pragma once

#include "cpu/cpu_features.h"

// Declares `kernel` of every instruction set and defines `op`, which runs the one this process
// selected. Each variant is compiled from <op>.inl by <op>_portable.cpp, <op>_avx2.cpp and
// <op>_avx512.cpp.
#if defined(__x86_64__)
#define SDENGINE_ISA_VARIANTS(op, kernel, Args)                                      \
  inline namespace isa_portable {                                                    \
  void kernel(const Args& args, Worker& worker);                                     \
  }                                                                                  \
  inline namespace isa_avx2 {                                                        \
  void kernel(const Args& args, Worker& worker);                                     \
  }                                                                                  \
  inline namespace isa_avx512 {                                                      \
  void kernel(const Args& args, Worker& worker);                                     \
  }                                                                                  \
  void op(const Args& args, Worker& worker) {                                        \
    using Kernel = void (*)(const Args&, Worker&);                                   \
    static const Kernel kVariants[] = {isa_portable::kernel, isa_avx2::kernel,       \
                                       isa_avx512::kernel};                          \
    static const Kernel chosen = kVariants[static_cast<int>(selected_vector_isa())]; \
    chosen(args, worker);                                                            \
  }
#else
#define SDENGINE_ISA_VARIANTS(op, kernel, Args)  \
  inline namespace isa_portable {                \
  void kernel(const Args& args, Worker& worker); \
  }                                              \
  void op(const Args& args, Worker& worker) { isa_portable::kernel(args, worker); }
#endif
