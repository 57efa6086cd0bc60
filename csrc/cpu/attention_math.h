// The arithmetic of tree_attention. Everything that decides the bits of a result stands in this
// file.
//
// A row sees its keys in one order: position 0, 1, 2, ... of its own path, wherever they lie in the
// cache. The result is made of
// - score(key) = (q scaled by scale / log 2) . k: chains of fused multiply-adds over kChain dims
//   each, added in order;
// - per split of kSplit consecutive positions: m = max, p = 2^(score - m), sum = p added lane by
//   lane (lane = position mod lanes), acc = p_0 v_0 + p_1 v_1 + ..., one chain in the order of
//   positions for every output element;
// - the row: splits merged one by one in the order of positions.
// No step depends on which other rows, queries or keys are computed along with it.
//
// Where a processor has dot products of bfloat16 and the cache is bfloat16, two dims of a score and
// two positions of acc (2 j and 2 j + 1 of their split) are one instruction, and the scaled query
// and p, not its sum, are rounded to bfloat16 before: attention_dots.h.
#pragma once

#include "cpu/packed_keys.h"
#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

constexpr int kSplit = 128;  // positions of one partial softmax: part of the arithmetic, see above
constexpr int kChain =
    32;  // dims: chains of 64 are 3% faster, but a third less exact than plain torch
constexpr int kQueryBlock = 6;  // queries per inner loop: twelve accumulators of sixteen registers
constexpr int kMaxHeadDim = 256;  // bounds the buffers on the stack
constexpr int kMaxQueries = 128;  // (row, head) pairs that share one pass over the keys

// Floats between two heads in the buffers: whole vectors of the widest instruction set.
SDE_INLINE int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// total[q][v] = sum over d in [first, last), in order, of queries[q][d] * dim d of the keys from
// first_key + v * kLanes on. Of what kind Keys are: PackedKeys, or those of attention_dots.h.
template <int Q, int V, class T>
SDE_INLINE void score_chain(const float* queries, int64_t query_stride, PackedKeys<T> keys,
                            int64_t first_key, int64_t first, int64_t last, Vec (&total)[Q][V]) {
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) total[q][v] = zeros();
  }
  for (int64_t d = first; d < last; d += 2) {  // which half of a pair: known when compiled
    for (int half = 0; half < 2; ++half) {
      Vec k[V];
      for (int v = 0; v < V; ++v) k[v] = keys.at(d + half, first_key + v * kLanes);
      for (int q = 0; q < Q; ++q) {
        const Vec x = broadcast(queries[q * query_stride + d + half]);
        for (int v = 0; v < V; ++v) total[q][v] = fma(x, k[v], total[q][v]);
      }
    }
  }
}

// scores[q * score_stride + i] = queries[q] . key i, for Q queries and `count` packed keys; what
// follows, up to kSubtile, means nothing.
template <int Q, class Keys>
void score_queries(const float* queries, int64_t query_stride, Keys keys, int64_t count,
                   int64_t head_dim, float* scores, int64_t score_stride) {
  constexpr int kWide = Q < 3 ? 4 : 2;  // at most eight accumulators: sixteen registers on AVX2
  constexpr int V = kWide * kLanes < kSubtile ? kWide : kSubtile / kLanes;
  for (int64_t column = 0; column < count; column += V * kLanes) {
    for (int64_t first = 0; first < head_dim; first += kChain) {
      const int64_t last = first + kChain < head_dim ? first + kChain : head_dim;
      Vec total[Q][V];
      score_chain(queries, query_stride, keys, column, first, last, total);
      for (int q = 0; q < Q; ++q) {
        for (int v = 0; v < V; ++v) {
          float* to = scores + q * score_stride + column + v * kLanes;
          store(to, first == 0 ? total[q][v] : load(to) + total[q][v]);
        }
      }
    }
  }
}

// The same for any number of queries.
template <class Keys>
void score_all(const float* queries, int64_t num_queries, int64_t query_stride, Keys keys,
               int64_t count, int64_t head_dim, float* scores, int64_t score_stride) {
  for (int64_t q = 0; q < num_queries; q += kQueryBlock) {
    const float* from = queries + q * query_stride;
    float* to = scores + q * score_stride;
    switch (num_queries - q) {
      case 1:
        score_queries<1>(from, query_stride, keys, count, head_dim, to, score_stride);
        break;
      case 2:
        score_queries<2>(from, query_stride, keys, count, head_dim, to, score_stride);
        break;
      case 3:
        score_queries<3>(from, query_stride, keys, count, head_dim, to, score_stride);
        break;
      case 4:
        score_queries<4>(from, query_stride, keys, count, head_dim, to, score_stride);
        break;
      case 5:
        score_queries<5>(from, query_stride, keys, count, head_dim, to, score_stride);
        break;
      default:
        score_queries<6>(from, query_stride, keys, count, head_dim, to, score_stride);
    }
  }
}

// Values of positions in order, where their rows lie.
template <class T>
struct ValueRows {
  const T* const* rows;

  // Dims from d on of position i: a vector of them, or the `lanes` that are left.
  SDE_INLINE Vec at(int64_t i, int64_t d) const { return load_as_float(rows[i] + d); }
  SDE_INLINE Vec at(int64_t i, int64_t d, int lanes) const {
    return load_as_float_partial(rows[i] + d, lanes);
  }
  static SDE_INLINE Vec add_product(Vec sum, Vec prob, Vec values) {
    return fma(prob, values, sum);
  }
};

// acc[q][d .. d + V lanes) += sum over i in order of probs[q * kSplit + i] * values.at(i, d).
template <int Q, int V, bool kPartial, class Values>
SDE_INLINE void accumulate_block(const float* probs, Values values, int64_t count, int64_t d,
                                 int lanes, float* acc, int64_t acc_stride) {
  Vec total[Q][V];
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) total[q][v] = load(acc + q * acc_stride + d + v * kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec x[V];
    for (int v = 0; v < V; ++v) {
      if constexpr (kPartial) {
        x[v] = values.at(i, d, lanes);
      } else {
        x[v] = values.at(i, d + v * kLanes);
      }
    }
    for (int q = 0; q < Q; ++q) {
      const Vec p = broadcast(probs[q * kSplit + i]);
      for (int v = 0; v < V; ++v) total[q][v] = Values::add_product(total[q][v], p, x[v]);
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) store(acc + q * acc_stride + d + v * kLanes, total[q][v]);
  }
}

// Dims from d on, V vectors at a time as long as they fill, then half as many; returns where the
// last vector ended.
template <int Q, int V, class Values>
SDE_INLINE int64_t accumulate_dims(const float* probs, Values values, int64_t count, int64_t d,
                                   int64_t head_dim, float* acc, int64_t acc_stride) {
  for (; d + V * kLanes <= head_dim; d += V * kLanes) {
    accumulate_block<Q, V, false>(probs, values, count, d, kLanes, acc, acc_stride);
  }
  if constexpr (V == 1)
    return d;
  else
    return accumulate_dims<Q, V / 2>(probs, values, count, d, head_dim, acc, acc_stride);
}

template <int Q, class Values>
void accumulate_queries(const float* probs, Values values, int64_t count, int64_t head_dim,
                        float* acc, int64_t acc_stride) {
  constexpr int V = Q == 1 ? 8 : Q == 2 ? 4 : 2;  // eight independent chains hide the latency
  const int64_t d = accumulate_dims<Q, V>(probs, values, count, 0, head_dim, acc, acc_stride);
  if (kLanes > 8 && d < head_dim) {  // head_dim is a multiple of 8
    accumulate_block<Q, 1, true>(probs, values, count, d, static_cast<int>(head_dim - d), acc,
                                 acc_stride);
  }
}

// `queries` rows of probs and acc (1 to kQueryBlock) over the same values.
template <class Values>
void accumulate(int64_t queries, const float* probs, Values values, int64_t count, int64_t head_dim,
                float* acc, int64_t acc_stride) {
  if (count <= 0) return;
  switch (queries) {
    case 1:
      accumulate_queries<1>(probs, values, count, head_dim, acc, acc_stride);
      break;
    case 2:
      accumulate_queries<2>(probs, values, count, head_dim, acc, acc_stride);
      break;
    case 3:
      accumulate_queries<3>(probs, values, count, head_dim, acc, acc_stride);
      break;
    case 4:
      accumulate_queries<4>(probs, values, count, head_dim, acc, acc_stride);
      break;
    case 5:
      accumulate_queries<5>(probs, values, count, head_dim, acc, acc_stride);
      break;
    default:
      accumulate_queries<6>(probs, values, count, head_dim, acc, acc_stride);
  }
}

// Largest score and sum of probabilities of a partial result; sum 0: no key seen.
struct Softmax {
  float max;
  float sum;
};

// 2^x for x <= 0, 0 below 2^-125, NaN for NaN; 2^0 is exactly 1. Scores are kept in units of log 2,
// which saves the general exponential's range reduction: a third of the softmax.
SDE_INLINE Vec exp2_nonpositive(Vec x) {
  const Vec magic =
      broadcast(12582912.0f);  // 1.5 * 2^23: the sum holds round(x) in its lowest bits
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec y = broadcast(1.5355155294e-4f);  // minimax on [-1/2, 1/2], relative error 2e-9
  y = fma(y, r, broadcast(1.3398935184e-3f));
  y = fma(y, r, broadcast(9.6184293337e-3f));
  y = fma(y, r, broadcast(5.5503323479e-2f));
  y = fma(y, r, broadcast(2.4022648005e-1f));
  y = fma(y, r, broadcast(6.9314720283e-1f));
  y = fma(y, r, broadcast(1.0f));
  const Vec scaled = from_bits(bits_of(y) + shift_left<23>(bits_of(shifted)));
  return select(less_equal(broadcast(-125.0f), x), scaled, max(zeros(), x));
}

// Probabilities in the place of their scores.
struct Floats {
  static SDE_INLINE void put(float* scores, int64_t i, Vec probs) { store(scores + i, probs); }
};

// Turns the scores of columns [begin, end) of a split into probabilities relative to their maximum,
// which Probs puts in their place. Columns beside them that share a vector become 0.
template <class Probs>
SDE_INLINE Softmax softmax_split(float* scores, int64_t begin, int64_t end) {
  const int64_t first = begin / kLanes * kLanes;
  const int64_t last = (end + kLanes - 1) / kLanes * kLanes;
  const float hidden = -__builtin_inff();
  for (int64_t i = first; i < begin; ++i) scores[i] = hidden;
  for (int64_t i = end; i < last; ++i) scores[i] = hidden;
  Vec largest = broadcast(hidden);
  for (int64_t i = first; i < last; i += kLanes) largest = max(largest, load(scores + i));
  const float top = max_lane(largest);
  Vec total = zeros();
  for (int64_t i = first; i < last; i += kLanes) {
    const Vec p = exp2_nonpositive(load(scores + i) - broadcast(top));
    Probs::put(scores, i, p);
    total = total + p;
  }
  return {top, sum(total)};
}

SDE_INLINE float exp2_of(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp2_nonpositive(broadcast(x)));
  return lanes[0];
}

// Adds the next split (in the order of positions) to a running result; both have `width` floats.
SDE_INLINE void merge(Softmax* state, float* acc, Softmax next, const float* next_acc,
                      int64_t width) {
  if (next.sum == 0.0f) return;
  if (state->sum == 0.0f) {
    for (int64_t d = 0; d < width; d += kLanes) store(acc + d, load(next_acc + d));
    *state = next;
    return;
  }
  const float top = state->max > next.max ? state->max : next.max;
  const float keep = exp2_of(state->max - top);
  const float add = exp2_of(next.max - top);
  for (int64_t d = 0; d < width; d += kLanes) {
    store(acc + d, fma(broadcast(add), load(next_acc + d), broadcast(keep) * load(acc + d)));
  }
  *state = {top, state->sum * keep + next.sum * add};
}

// acc / sum, to element `at` of out and on; zero for a row that sees nothing. acc has whole
// vectors.
SDE_INLINE void write_result(Softmax state, const float* acc, int64_t head_dim, void* out,
                             Format format, int64_t at) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const Vec value = state.sum == 0.0f ? zeros() : load(acc + d) / broadcast(state.sum);
    store_activation(out, format, at + d, value, head_dim - d);
  }
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
