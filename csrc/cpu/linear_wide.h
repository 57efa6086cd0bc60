// The loops over a sweep with sixteen lanes: chains, passes, groups of rows, and what is prefetched
// meanwhile.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/linear_wide_step.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

constexpr int kMaxGroup = 24;  // rows; as many sums as leave registers for weights and activations

// Strips that R rows take at once. A weight is widened once for all rows of a group, a row's input
// is loaded once for all strips.
constexpr int strips_of_group(int64_t rows) { return rows <= 6 ? 4 : rows <= 12 ? 2 : 1; }

// Blocks of the next panel: what is finished together.
SDE_INLINE int64_t next_panel(int64_t blocks_left, int64_t rows) {
  const int64_t most = rows <= 6 || rows > kMaxGroup ? kMaxPanel : 1;
  return blocks_left < most ? blocks_left : most;
}

// Strips of a panel that make a sweep. One group of rows reads its strips in the order of their
// addresses; several find a chunk of more strips in the caches.
SDE_INLINE int64_t strips_at_once(int64_t panel_blocks, int64_t rows) {
  return rows <= 12 || rows > kMaxGroup ? panel_blocks * kBlockStrips : 1;
}

// Size of the next group of rows: as few groups as possible, all of a size.
SDE_INLINE int64_t next_group(int64_t rows_left) {
  const int64_t groups = (rows_left + kMaxGroup - 1) / kMaxGroup;
  return (rows_left + groups - 1) / groups;
}

// Strips somewhere in memory: the first one's address, bytes from one to the next.
struct Strips {
  const char* first;
  int64_t stride;
};

// What one chain does: `steps` steps. All but the last Kernel::kAheadLines fetch what the chain
// itself reads so many lines later, these what comes after it.
struct ChainArgs {
  const char* x;
  int64_t x_stride;
  Strips w;
  Strips next;
  int64_t steps;
  bool is_first;
  float* partial;  // of the first row and strip
};

template <class Kernel, int R, int C, bool kFetches>
SDE_INLINE void run_steps(Vec (&sums)[R][C], Strided<R>& x, Strided<C>& w, Strided<C> fetched,
                          int64_t steps) {
  for (int64_t s = 0; s < steps; ++s) {
    Kernel::step(sums, x, w);
    if (kFetches) {
      SDE_UNROLL for (int c = 0; c < C; ++c) fetch_line<Kernel::kLocality>(fetched, c);
      fetched.advance(kLine);
    }
    x.advance(Kernel::kDepth * sizeof(typename Kernel::Input));
    w.advance(kLine);
  }
}

template <class Kernel, int R, int C, bool kFetches>
__attribute__((noinline)) void run_chain(const ChainArgs& args) {
  Vec sums[R][C];
  SDE_UNROLL for (int r = 0; r < R; ++r) {
    SDE_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = zeros();
  }
  asm volatile("" ::: "memory");  // a step's own instructions do not say what they read
  Strided<R> x(args.x, args.x_stride);
  Strided<C> w(args.w.first, args.w.stride);
  constexpr int64_t kAhead = Kernel::kAheadLines;
  const int64_t first = args.steps > kAhead ? args.steps - kAhead : 0;
  run_steps<Kernel, R, C, kFetches>(
      sums, x, w, Strided<C>(args.w.first + kAhead * kLine, args.w.stride), first);
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
  ChainArgs chain{args.x, args.x_stride, args.w, args.w, 0, args.is_first, args.partial};
  for (int64_t left = args.num_inputs; left > 0; left -= kFold) {
    const int64_t inputs = left < kFold ? left : kFold;
    chain.steps = (inputs + Kernel::kDepth - 1) / Kernel::kDepth;
    chain.next.first = chain.w.first + chain.steps * kLine;
    if (left <= kFold) chain.next = args.next;
    run_chain<Kernel, R, C, kFetches>(chain);
    chain.x += inputs * sizeof(typename Kernel::Input);
    chain.w.first += chain.steps * kLine;
    chain.is_first = false;
  }
}

template <class Kernel>
using RunPass = void (*)(const PassArgs&);

// run_pass for R rows: [fetches][all strips of a group, or two].
template <class Kernel, int R>
RunPass<Kernel> pass_of_rows(int64_t strips, bool fetches) {
  constexpr int kMost = strips_of_group(R);
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

// What follows a sweep: the strips after it, or what the next launch begins with.
SDE_INLINE Strips after_sweep(const PackedWeight& weight, int64_t end, const WeightShare* next) {
  if (next == nullptr || next->weight == nullptr)
    return {static_cast<const char*>(weight.data) + end * weight.strip_bytes(),
            weight.strip_bytes()};
  const int64_t strip = next->blocks.begin * kBlockStrips;
  return {static_cast<const char*>(next->weight->data) + strip * next->weight->strip_bytes(),
          next->weight->strip_bytes()};
}

// One sweep of strips from `strip` on for up to kLinearMaxRows rows; `next` follows the last one of
// a share.
template <class Kernel>
void run_sweep(const LinearArgs& args, const RowsOf<Kernel>& x, int64_t rows, int64_t strip,
               int64_t strips, const WeightShare* next, float* partial) {
  constexpr auto kSizes = std::make_integer_sequence<int, kMaxGroup>();
  const PackedWeight& weight = args.weight;
  const Strips all{static_cast<const char*>(weight.data) + strip * weight.strip_bytes(),
                   weight.strip_bytes()};
  for (int64_t k = 0; k < weight.num_inputs; k += kChunk) {
    const int64_t left = weight.num_inputs - k;
    const bool is_last = left <= kChunk;
    PassArgs pass{
        nullptr, x.stride * int64_t{sizeof(*x.first)}, all, {}, is_last ? left : kChunk, k == 0,
        nullptr};
    const Strips chunk{all.first + k * weight.input_bytes(), all.stride};
    const Strips after = is_last ? after_sweep(weight, strip + strips, next)
                                 : Strips{chunk.first + kChunk * weight.input_bytes(), all.stride};
    for (int64_t r = 0, size; r < rows; r += size) {
      size = next_group(rows - r);
      const int64_t at_once = std::min<int64_t>(strips_of_group(size), strips);
      const auto run = choose_pass<Kernel>(size, strips, r == 0, kSizes);
      pass.x = reinterpret_cast<const char*>(x.first + r * x.stride + k);
      for (int64_t s = 0; s < strips; s += at_once) {
        pass.w.first = chunk.first + s * all.stride;
        pass.next =
            s + at_once < strips ? Strips{pass.w.first + at_once * all.stride, all.stride} : after;
        pass.partial = partial + s * kPartialStride + r * kStripOutputs;
        run(pass);
      }
    }
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
