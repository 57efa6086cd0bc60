#include "cpu/linear.inl"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// bfloat16 dot products: two inputs an instruction, rows rounded to bfloat16. By default AMD's
// processors alone run it.
struct Bf16Dot {
  using Input = uint16_t;
  static constexpr int kDepth = 2;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const Strided<R>& x, const Strided<C>& w) {
    Vec weights[C];
    SDE_UNROLL for (int c = 0; c < C; ++c) weights[c] = vector_at<0>(w, c);
    SDE_UNROLL for (int r = 0; r < R; ++r) {
      if constexpr (C == 1) {
        add_broadcast_dot(sums[r][0], x, r, weights[0]);
      } else {
        const Vec pair = broadcast_at<0>(x, r);
        SDE_UNROLL for (int c = 0; c < C; ++c) add_dot(sums[r][c], pair, weights[c]);
      }
    }
  }

  // One instruction: a broadcast of its own takes as long as the dot product, and 16 rows of one
  // strip ran at 68% of the peak instead of 92% (Zen 4).
  template <int N>
  static SDE_INLINE void add_broadcast_dot(Vec& sum, const Strided<N>& x, int row, Vec weights) {
#if defined(SDENGINE_PINNED_STEPS)
    constexpr int kOffset = 0;
    SDE_AT("vdpbf16ps ", "%{1to16%}, %[weights], %0", "+v"(sum.v), x, row,
           kOffset, [weights] "v"(weights.v));
#else
    add_dot(sum, broadcast_at<0>(x, row), weights);
#endif
  }

  static SDE_INLINE void add_dot(Vec& sum, Vec a, Vec b) {
#if defined(SDENGINE_PINNED_STEPS)
    asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
#else
    sum.v =
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v));
#endif
  }
};

// One of them starts in a cycle, or two do.
struct OneDot : Bf16Dot, TogetherTiling, FetchesIntoL2 {};
struct TwoDots : Bf16Dot, TogetherChunks, FetchesIntoL1 {};

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE

void linear_blocks_avx512_one_dot(const LinearArgs& args, Range share, const WeightShare& next,
                                  void* scratch) {
  if (args.weight.format != Format::kBfloat16)
    return linear_blocks_avx512(args, share, next, scratch);
  linear_op::linear_blocks<linear_op::OneDot>(args, share, next, scratch);
}

void linear_blocks_avx512_two_dots(const LinearArgs& args, Range share, const WeightShare& next,
                                   void* scratch) {
  using namespace linear_op;
  switch (args.weight.format) {
    case Format::kFloat32:
      return linear_blocks<Fp32In<ApartChunks>>(args, share, next, scratch);
    case Format::kBfloat16:
      return linear_blocks<TwoDots>(args, share, next, scratch);
    case Format::kFloat16:
      return linear_blocks<WidenedHalfIn<ApartChunks>>(args, share, next, scratch);
  }
}

}  // namespace sdengine
