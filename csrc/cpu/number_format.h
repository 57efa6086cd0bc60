// Number formats of weights and KV caches, and conversions of single numbers. Arithmetic is in
// float32 whatever the format.
#pragma once

#include <cstdint>
#include <cstring>

namespace sdengine {

// As `kernels/number_format.py` numbers them.
enum class Format : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

inline int64_t element_bytes(Format format) { return format == Format::kFloat32 ? 4 : 2; }

// An element of bfloat16 is a uint16_t, the upper half of a float32; one of float16 (IEEE 754
// binary16) is this.
struct Half {
  uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bf16_to_float(uint16_t bits) { return float_from_bits(uint32_t{bits} << 16); }

// Round to nearest even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
  uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(bits >> 16);
}

// Exact; a NaN is quiet afterwards, as the instruction makes it. Without branches, so that the
// compiler can take several at a time.
inline float half_to_float(Half half) {
  const uint32_t magnitude = half.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  // With an implicit one that is taken off again, a subnormal needs no shift of its own.
  const uint32_t subnormal =
      bits_from_float(float_from_bits((magnitude << 13) + (113u << 23)) - 6.103515625e-5f);
  const uint32_t special = (magnitude << 13) | 0x7f800000u | (magnitude > 0x7c00u ? 0x400000u : 0u);
  const uint32_t bits = magnitude >= 0x7c00u ? special : magnitude < 0x400u ? subnormal : normal;
  return float_from_bits(bits | (half.bits & 0x8000u) << 16);
}

// Round to nearest even, 65520 and more to infinity; NaN stays NaN.
inline Half float_to_half(float value) {
  const uint32_t sign = bits_from_float(value) >> 16 & 0x8000u;
  const uint32_t magnitude = bits_from_float(value) & 0x7fffffffu;
  uint32_t bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 65536
    bits = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // 2^-14: the last place of 0.5 is that of a subnormal
    bits = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    bits = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

}  // namespace sdengine
