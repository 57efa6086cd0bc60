#include "cpu/cpu_features.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sdengine {
namespace {

Isa parse(const std::string& name) {
  if (name == "portable") return Isa::kPortable;
  if (name == "avx2") return Isa::kAvx2;
  if (name == "avx512") return Isa::kAvx512;
  if (name == "avx512_bf16") return Isa::kAvx512Bf16;
  throw std::runtime_error("SDENGINE_ISA: expected portable, avx2, avx512 or avx512_bf16, got " +
                           name);
}

Isa select() {
  const char* wanted = std::getenv("SDENGINE_ISA");
  if (wanted == nullptr || *wanted == '\0') return fastest_isa();
  const Isa isa = parse(wanted);
  if (isa > detected_isa()) {
    throw std::runtime_error("SDENGINE_ISA=" + std::string(wanted) + ": this machine has only " +
                             isa_name(detected_isa()));
  }
  return isa;
}

}  // namespace

Isa detected_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kPortable;
}

// Intel's cores take four times as long for a dot product as for a multiply-add, and so half the
// operations a second (an Emerald Rapids server: 85 against 175 GFLOP/s a core); AMD's take as
// long. By the maker's name and not by the clock: what a process computes must not depend on who
// else used the core when it started.
Isa fastest_isa() {
  const Isa all = detected_isa();
#if defined(__x86_64__)
  if (all == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return all;
}

// By the family: what tells how wide a core multiplies is a leaf that hypervisors leave empty.
bool starts_two_dots() {
#if defined(__x86_64__)
  constexpr unsigned kZen5 = 0x1a;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned base = eax >> 8 & 0xf;
  return (base == 0xf ? base + (eax >> 20 & 0xff) : base) >= kZen5;
#else
  return false;
#endif
}

Isa selected_isa() {
  static const Isa isa = select();
  return isa;
}

Isa selected_vector_isa() {
  const Isa isa = selected_isa();
  return isa == Isa::kAvx512Bf16 ? Isa::kAvx512 : isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace sdengine
