// Noise for vectors of lanes: the shared text of noise_lanes.inl plus random words in token order.
#pragma once

#include "cpu/vec.h"
#include "sdengine/noise.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

#define SDE_LANE_FN SDE_INLINE
#include "sdengine/noise_lanes.inl"
#undef SDE_LANE_FN

constexpr int kDrawWidth = 4 * kLanes;  // tokens served by one vector Philox call

// Words of lane-held blocks -> token order. Lane 4k + j holds the block of counter G j + k (G
// groups of four lanes), so that transposing 4 x 4 words inside each group leaves consecutive
// tokens in words[j].
#if defined(SDENGINE_SIMDE) || defined(__AVX512F__)
SDE_INLINE void transpose_words(IntVec* w) {
  const __m512i ab_low = _mm512_unpacklo_epi32(w[0].v, w[1].v);
  const __m512i ab_high = _mm512_unpackhi_epi32(w[0].v, w[1].v);
  const __m512i cd_low = _mm512_unpacklo_epi32(w[2].v, w[3].v);
  const __m512i cd_high = _mm512_unpackhi_epi32(w[2].v, w[3].v);
  w[0].v = _mm512_unpacklo_epi64(ab_low, cd_low);
  w[1].v = _mm512_unpackhi_epi64(ab_low, cd_low);
  w[2].v = _mm512_unpacklo_epi64(ab_high, cd_high);
  w[3].v = _mm512_unpackhi_epi64(ab_high, cd_high);
}
#elif defined(__AVX2__)
SDE_INLINE void transpose_words(IntVec* w) {
  const __m256i ab_low = _mm256_unpacklo_epi32(w[0].v, w[1].v);
  const __m256i ab_high = _mm256_unpackhi_epi32(w[0].v, w[1].v);
  const __m256i cd_low = _mm256_unpacklo_epi32(w[2].v, w[3].v);
  const __m256i cd_high = _mm256_unpackhi_epi32(w[2].v, w[3].v);
  w[0].v = _mm256_unpacklo_epi64(ab_low, cd_low);
  w[1].v = _mm256_unpackhi_epi64(ab_low, cd_low);
  w[2].v = _mm256_unpacklo_epi64(ab_high, cd_high);
  w[3].v = _mm256_unpackhi_epi64(ab_high, cd_high);
}
#else
SDE_INLINE void transpose_words(IntVec* w) {
  const IntVec in[4] = {w[0], w[1], w[2], w[3]};
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) w[i].v[j] = in[j].v[i];
  }
}
#endif

SDE_INLINE IntVec counter_offsets() {
  constexpr int kGroups = kLanes / 4;
  alignas(64) int32_t offsets[kLanes];
  for (int k = 0; k < kGroups; ++k) {
    for (int j = 0; j < 4; ++j) offsets[4 * k + j] = kGroups * j + k;
  }
  return load_int(offsets);
}

// Random words of tokens first .. first + kDrawWidth - 1 (first a multiple of kDrawWidth): words[j]
// holds the tokens from first + j * kLanes on, the same words as random_word() gives one by one.
SDE_INLINE void random_words(const NoiseKey& key, IntVec offsets, int64_t first, IntVec* words) {
  words[0] = broadcast_int(static_cast<int32_t>(first / 4)) + offsets;
  words[1] = broadcast_int(key.position);
  words[2] = broadcast_int(static_cast<int32_t>(key.purpose));
  words[3] = broadcast_int(key.extra);
  philox_rounds(words, static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
  transpose_words(words);
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
