// What tree_attention does otherwise where dot products of bfloat16 are instructions: two dims of a
// score, or two positions of a sum, at a time. Twice the multiply-adds of float32 an instruction
// (Zen 4), and nothing is widened: pairs are multiplied as they lie in the cache.
//
// A pair is the bits of a float everywhere: of a query, of keys (PackedKeys has them so), of
// probabilities. The first of two positions is even; where one of them is hidden from a row its
// probability is 0, and the other's value stands for its own, because a hidden one may be NaN.
#pragma once

#include "cpu/attention_math.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

#if defined(__AVX512BF16__) || defined(SDENGINE_SIMDE_BF16)
constexpr bool kHasDots = true;

SDE_INLINE Vec add_dot(Vec sum, Vec a, Vec b) {
  return {
      _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

// Sixteen probabilities: none is subnormal, which this instruction would flush.
SDE_INLINE void store_probs(uint16_t* p, Vec a) {
#if defined(SDENGINE_SIMDE)
  store_bf16(p, a);
#else
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
#endif
}

// Pairs (a[i], b[i]) of sixteen numbers.
SDE_INLINE Vec pairs_of(__m256i a, __m256i b) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return from_bits(
      {_mm512_permutex2var_epi16(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b))});
}
SDE_INLINE Vec pair_rows(const uint16_t* a, const uint16_t* b) {
  return pairs_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)),
                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
}
// Of eight, and zeros.
SDE_INLINE Vec pair_half_rows(const uint16_t* a, const uint16_t* b) {
  return pairs_of(_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
                  _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b))));
}
#else
constexpr bool kHasDots = false;

Vec add_dot(Vec sum, Vec a, Vec b);
Vec pair_rows(const uint16_t* a, const uint16_t* b);
Vec pair_half_rows(const uint16_t* a, const uint16_t* b);
void store_probs(uint16_t* p, Vec a);
#endif

// Probabilities as pairs, in the first half of the place of their scores.
struct Halves {
  static SDE_INLINE void put(float* scores, int64_t i, Vec probs) {
    store_probs(reinterpret_cast<uint16_t*>(scores) + i, probs);
  }
};

// to = from * scale, rounded.
SDE_INLINE void round_query(const float* from, float scale, int64_t head_dim, float* to) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(to);
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const int64_t left = head_dim - d;
    const Vec x = left < kLanes ? load_partial(from + d, static_cast<int>(left)) : load(from + d);
    store_bf16(halves + d, x * broadcast(scale));
  }
}

// PackedKeys of bf16, read as pairs.
struct KeyPairs {
  const float* data;
};

template <int Q, int V>
SDE_INLINE void score_chain(const float* queries, int64_t query_stride, KeyPairs keys,
                            int64_t first_key, int64_t first, int64_t last, Vec (&total)[Q][V]) {
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) total[q][v] = zeros();
  }
  for (int64_t pair = first / 2; pair < last / 2; ++pair) {
    Vec k[V];
    for (int v = 0; v < V; ++v) k[v] = load(keys.data + pair * kSubtile + first_key + v * kLanes);
    for (int q = 0; q < Q; ++q) {
      const Vec x = broadcast(queries[q * query_stride + pair]);
      for (int v = 0; v < V; ++v) total[q][v] = add_dot(total[q][v], x, k[v]);
    }
  }
}

// Values of pairs of positions, two rows each.
struct ValuePairs {
  const uint16_t* const* rows;

  SDE_INLINE Vec at(int64_t i, int64_t d) const {
    return pair_rows(rows[2 * i] + d, rows[2 * i + 1] + d);
  }
  // head_dim is a multiple of 8.
  SDE_INLINE Vec at(int64_t i, int64_t d, int) const {
    return pair_half_rows(rows[2 * i] + d, rows[2 * i + 1] + d);
  }
  static SDE_INLINE Vec add_product(Vec sum, Vec probs, Vec values) {
    return add_dot(sum, probs, values);
  }
};

// The same, paired before: `stride` from one pair to the next.
struct PairedValues {
  const float* data;
  int64_t stride;

  SDE_INLINE Vec at(int64_t i, int64_t d) const { return load(data + i * stride + d); }
  SDE_INLINE Vec at(int64_t i, int64_t d, int) const { return at(i, d); }
  static SDE_INLINE Vec add_product(Vec sum, Vec probs, Vec values) {
    return add_dot(sum, probs, values);
  }
};

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
