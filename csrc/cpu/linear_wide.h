// The loops over a sweep with sixteen lanes: chains, passes, groups of rows, and what is prefetched
// meanwhile.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/linear_wide_chunks.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// End of the first panel of `blocks`: what is finished together.
template <class Kernel>
SDE_INLINE int64_t panel_end(Range blocks, int64_t rows) {
  return Kernel::panel_end(blocks, rows);
}

// Strips of a panel that make a sweep.
template <class Kernel>
SDE_INLINE int64_t strips_at_once(int64_t panel_blocks, int64_t rows) {
  return Kernel::strips_at_once(panel_blocks, rows);
}

// What one chain does: `steps` steps. All but the last Kernel::kAheadLines fetch what the chain
// itself reads so many lines later, these what comes after it; in a part of what lies together
// (kIsPart), all of them fetch that.
struct ChainArgs {
  const char* x;
  int64_t x_stride;
  Strips w;
  Strips next;
  int64_t steps;
  bool is_first;
  float* partial;  // of the first row and strip
};

// Whether C strips are fewer than lie together. Their passes fetch the next chunk in the order of
// its addresses, every pass a part of it: as every second or fourth line, memory is slow at it.
template <class Kernel, int C>
constexpr bool kIsPart = C < Kernel::kTogether;
template <class Kernel, int C>
constexpr int64_t kFetchStride = kIsPart<Kernel, C> ? C * kLine : kLineStride<Kernel>;

template <class Kernel, int R, int C, bool kFetches>
SDE_INLINE void run_steps(Vec (&sums)[R][C], Strided<R>& x, Strided<C>& w, Strided<C> fetched,
                          int64_t steps) {
  for (int64_t s = 0; s < steps; ++s) {
    Kernel::step(sums, x, w);
    if (kFetches) {
      SDE_UNROLL for (int c = 0; c < C; ++c) fetch_line<Kernel::kLocality>(fetched, c);
      fetched.advance(kFetchStride<Kernel, C>);
    }
    x.advance(Kernel::kDepth * sizeof(typename Kernel::Input));
    w.advance(kLineStride<Kernel>);
  }
}

template <class Kernel, int R, int C, bool kFetches>
SDE_INLINE void run_chain(const ChainArgs& args) {
  Vec sums[R][C];
  clear(sums);
  asm volatile("" ::: "memory");  // a step's own instructions do not say what they read
  Strided<R> x(args.x, args.x_stride);
  Strided<C> w(args.w.first, args.w.stride);
  constexpr int64_t kAhead = Kernel::kAheadLines;
  const int64_t first = kIsPart<Kernel, C> || args.steps < kAhead ? 0 : args.steps - kAhead;
  run_steps<Kernel, R, C, kFetches>(
      sums, x, w, Strided<C>(args.w.first + kAhead * kLineStride<Kernel>, args.w.stride), first);
  run_steps<Kernel, R, C, kFetches>(sums, x, w, Strided<C>(args.next.first, args.next.stride),
                                    args.steps - first);
  fold(sums, 0, args.is_first, args.partial);
}

// R rows against C strips of a chunk: partial (+)= x W^T.
struct PassArgs {
  const char* x;
  int64_t x_stride;
  Strips w;
  Strips next;  // what the next pass begins with
  int64_t num_inputs;
  bool is_first;
  float* partial;
};

template <class Kernel, int R, int C, bool kFetches>
void run_pass(const PassArgs& args) {
  ChainArgs chain{args.x, args.x_stride, args.w, args.next, 0, args.is_first, args.partial};
  for (int64_t left = args.num_inputs; left > 0; left -= kFold) {
    const int64_t inputs = left < kFold ? left : kFold;
    chain.steps = (inputs + Kernel::kDepth - 1) / Kernel::kDepth;
    const Strips rest{chain.w.first + chain.steps * kLineStride<Kernel>, chain.w.stride};
    if (!kIsPart<Kernel, C>) chain.next = left > kFold ? rest : args.next;
    run_chain<Kernel, R, C, kFetches>(chain);
    if (kIsPart<Kernel, C>) chain.next.first += chain.steps * kFetchStride<Kernel, C>;
    chain.x += inputs * sizeof(typename Kernel::Input);
    chain.w = rest;
    chain.is_first = false;
  }
}

// All inputs of R rows against C strips, the same sums in the same order: they stay in registers,
// and a strip has no more calls than this one (Zen 4, weights in the last-level cache: a row takes
// 0.92 of the time, two and three 0.97). Where `next` is known the last chain fetches its lines.
template <class Kernel, int R, int C>
void run_whole(const PassArgs& args) {
  Vec total[R][C];
  Strided<R> x(args.x, args.x_stride);
  Strided<C> w(args.w.first, args.w.stride);
  const Strided<C> next(args.next.first, args.next.stride);
  asm volatile("" ::: "memory");  // a step's own instructions do not say what they read
  for (int64_t left = args.num_inputs; left > 0; left -= kFold) {
    const bool is_first = left == args.num_inputs, is_last = left <= kFold;
    const int64_t steps = ((is_last ? left : kFold) + Kernel::kDepth - 1) / Kernel::kDepth;
    Vec sums[R][C];
    clear(sums);
    if (is_last && args.next.first != nullptr) {
      run_steps<Kernel, R, C, true>(sums, x, w, next, steps);
    } else {
      run_steps<Kernel, R, C, false>(sums, x, w, next, steps);
    }
    SDE_UNROLL for (int r = 0; r < R; ++r) {
      SDE_UNROLL for (int c = 0; c < C; ++c) total[r][c] =
          is_first ? sums[r][c] : total[r][c] + sums[r][c];
    }
  }
  fold(total, 0, args.is_first, args.partial);
}

template <class Kernel>
using RunPass = void (*)(const PassArgs&);

// run_whole of so many rows.
template <class Kernel, int... Less>
RunPass<Kernel> choose_whole(int64_t rows, std::integer_sequence<int, Less...>) {
  static constexpr RunPass<Kernel> kTable[] = {run_whole<Kernel, Less + 1, Kernel::kTogether>...};
  return kTable[rows - 1];
}

// run_pass for R rows: [fetches][all strips of a group, or two].
template <class Kernel, int R>
RunPass<Kernel> pass_of_rows(int64_t strips, bool fetches) {
  constexpr int kMost = Kernel::strips_of_group(R);
  constexpr int kFewer = kMost < 2 ? kMost : 2;
  if (strips < kMost)
    return fetches ? run_pass<Kernel, R, kFewer, true> : run_pass<Kernel, R, kFewer, false>;
  return fetches ? run_pass<Kernel, R, kMost, true> : run_pass<Kernel, R, kMost, false>;
}

template <class Kernel, int... Less>
RunPass<Kernel> choose_pass(int64_t rows, int64_t strips, bool fetches,
                            std::integer_sequence<int, Less...>) {
  using OfRows = RunPass<Kernel> (*)(int64_t, bool);
  static constexpr OfRows kTable[] = {pass_of_rows<Kernel, Less + 1>...};
  return kTable[rows - 1](strips, fetches);
}

// What pass `s` of a chunk fetches: the strips after its own or, if these are fewer than lie
// together, its part of the next chunk.
template <class Kernel>
SDE_INLINE Strips next_of(const PassArgs& pass, int64_t s, int64_t at_once, int64_t strips,
                          const Strips& after) {
  if (at_once < Kernel::kTogether)
    return {after.first + s * pass.num_inputs / Kernel::kDepth * kLine, kLine};
  if (s + at_once == strips) return after;
  return {pass.w.first + at_once * pass.w.stride, pass.w.stride};
}

// One sweep of strips from `strip` on for up to kLinearMaxRows rows; `next` follows the last one of
// a share.
template <class Kernel>
void run_chunks(const LinearArgs& args, const RowsOf<Kernel>& x, int64_t rows, int64_t strip,
                int64_t strips, const WeightShare* next, float* partial) {
  constexpr auto kSizes = std::make_integer_sequence<int, Kernel::kMaxGroup>();
  const PackedWeight& weight = args.weight;
  const Strips all = strips_from(weight, strip);
  const int64_t input_bytes = weight.input_bytes() * Kernel::kTogether;
  const int64_t x_stride = x.stride * int64_t{sizeof(*x.first)};
  if constexpr (Kernel::kWholeRows > 0) {
    if (rows <= Kernel::kWholeRows && strips == Kernel::kTogether) {
      constexpr auto kRows = std::make_integer_sequence<int, Kernel::kWholeRows>();
      const Strips after = next == nullptr ? Strips{} : after_sweep(weight, strip + strips, next);
      choose_whole<Kernel>(rows, kRows)({reinterpret_cast<const char*>(x.first), x_stride, all,
                                         after, weight.num_inputs, true, partial});
      return;
    }
  }
  for (int64_t k = 0; k < weight.num_inputs; k += kChunk) {
    const int64_t left = weight.num_inputs - k;
    const bool is_last = left <= kChunk;
    PassArgs pass{nullptr, x_stride, all, {}, is_last ? left : kChunk, k == 0, nullptr};
    const Strips chunk{all.first + k * input_bytes, all.stride};
    const Strips after = is_last ? after_sweep(weight, strip + strips, next)
                                 : Strips{chunk.first + kChunk * input_bytes, all.stride};
    const bool fetches = Kernel::fetches(weight, rows) || (is_last && next != nullptr);
    for (int64_t r = 0, size; r < rows; r += size) {
      size = next_group(rows - r, Kernel::kMaxGroup);
      const int64_t at_once = std::min<int64_t>(Kernel::strips_of_group(size), strips);
      const auto run = choose_pass<Kernel>(size, strips, fetches && r == 0, kSizes);
      pass.x = reinterpret_cast<const char*>(x.first + r * x.stride + k);
      for (int64_t s = 0; s < strips; s += at_once) {
        pass.w.first = chunk.first + s * all.stride;
        pass.next = next_of<Kernel>(pass, s, at_once, strips, after);
        pass.partial = partial + s * kPartialStride + r * kStripOutputs;
        run(pass);
      }
    }
  }
}

// The same by whichever way the kernel cuts a sweep.
template <class Kernel>
SDE_INLINE void run_sweep(const LinearArgs& args, const RowsOf<Kernel>& x, int64_t rows,
                          int64_t strip, int64_t strips, const WeightShare* next, float* partial) {
  if constexpr (Kernel::kChunkStrips > 0) {
    if (rows >= Kernel::kChunkRows)
      return run_chunks_in_l1<Kernel>(args, x, rows, strip, strips, next, partial);
  }
  if constexpr (Kernel::kChunkRows > 1)
    run_chunks<Kernel>(args, x, rows, strip, strips, next, partial);
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
