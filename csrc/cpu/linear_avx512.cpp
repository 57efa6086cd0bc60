#include "cpu/linear.inl"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

// bfloat16 dot products: two inputs an instruction. The rows are rounded to bfloat16 once, by every
// worker for itself (128 rows of 2048 cost 10 us; a barrier and a shared buffer would save less
// than they cost).
struct Bf16Dot {
  using Weight = uint16_t;
  using Input = uint16_t;
  static constexpr int kDepth = 2;
  static constexpr int kSideBySide = 2;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const uint16_t* const (&x)[R], int64_t at,
                              const uint16_t* const (&w)[C], int64_t i) {
    IntVec weights[C];
    for (int c = 0; c < C; ++c) weights[c] = pairs_at(w[c] + i);
    SDE_UNROLL for (int r = 0; r < R; ++r) {
      const IntVec value = from_pair(bytes_from(x[r], at));
      for (int c = 0; c < C; ++c) add_dot(sums[r][c], value, weights[c]);
    }
  }

  // The rounded rows are padded with a zero, as the weights are.
  template <int R, int C>
  static SDE_INLINE void last_half_step(Vec (&sums)[R][C], const uint16_t* const (&x)[R],
                                        int64_t at, const uint16_t* const (&w)[C], int64_t i) {
    step<R, C>(sums, x, at, w, i);
  }

#if defined(SDENGINE_PINNED_STEPS)
  static SDE_INLINE void add_dot(Vec& sum, IntVec a, IntVec b) {
    asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  }
  static SDE_INLINE IntVec from_pair(const uint16_t* p) {
    IntVec a;
    asm volatile("vpbroadcastd %1, %0" : "=v"(a.v) : "m"(*reinterpret_cast<const char(*)[4]>(p)));
    return a;
  }
#else
  static SDE_INLINE void add_dot(Vec& sum, IntVec a, IntVec b) {
    sum.v =
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v));
  }
  static SDE_INLINE IntVec from_pair(const uint16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return broadcast_int(pair);
  }
#endif

  static SDE_INLINE void prepare_rows(const LinearArgs& args, int64_t first, int64_t count,
                                      void* scratch, const uint16_t** x) {
    const int64_t stride = ((args.weight.num_inputs + 31) / 32 | 1) *
                           32;  // an odd number of lines: rows spread over the sets
    for (int64_t r = 0; r < count; ++r) {
      uint16_t* rounded = static_cast<uint16_t*>(scratch) + r * stride;
      const float* row = input_row(args, first + r);
      int64_t k = 0;
      for (; k + kLanes <= args.weight.num_inputs; k += kLanes)
        store_bf16(rounded + k, load(row + k));
      const int left = static_cast<int>(args.weight.num_inputs - k);
      if (left > 0) store_bf16(rounded + k, load_partial(row + k, left));
      x[r] = rounded;
    }
  }
};

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE

void linear_blocks_avx512(const LinearArgs& args, Range share, const WeightShare& next,
                          void* scratch) {
  linear_op::linear_blocks_of_format<linear_op::Bf16Dot>(args, share, next, scratch);
}

}  // namespace sdengine
