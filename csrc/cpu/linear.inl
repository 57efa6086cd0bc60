// The loops of `linear`, written once for all instruction sets; see linear.h for what they promise.
//
// A worker walks its blocks of 32 outputs; within a block, chunks of K small enough for the L1 cache; over each chunk
// run all groups of rows, with R x C vectors of sums in registers. So a weight comes from memory once, whatever the
// number of rows (up to kLinearMaxRows), and is used from the L1 cache.
#include <utility>

#include "cpu/linear.h"
#include "cpu/packed_weight.h"
#include "cpu/vec.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace linear_op {

constexpr int64_t kChunk = 256;  // inputs: 32 x 256 bf16 weights are 16 KB, half an L1 cache
constexpr int kBlockVectors = kBlockOutputs / kLanes;
constexpr int64_t kLine = 64;

// One chunk of weights, the rows that use it, and where the next chunk lies.
template <class Kernel>
struct Chunk {
  const typename Kernel::Weight* weight;
  int64_t first_input;
  int64_t num_inputs;
  bool is_first;
  const char* ahead;      // bytes to prefetch next
  int64_t lines_per_pass; // of them, by each pass over the chunk
};

// The activations that make output row `row`.
SDE_INLINE const float* input_row(const LinearArgs& args, int64_t row) {
  return args.x + (args.rows == nullptr ? row : args.rows[row]) * args.num_inputs;
}

// bfloat16 weights widened by a shift or a mask, which is exact; float32 activations.
struct WidenedBf16 {
  using Weight = uint16_t;
  using Input = float;
  static constexpr int kDepth = 2;  // inputs a step

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t k, const uint16_t* w) {
    const int32_t* pairs = reinterpret_cast<const int32_t*>(w);
    Vec even[C];
    for (int c = 0; c < C; ++c) even[c] = from_bits(shift_left<16>(load_int(pairs + c * kLanes)));
    multiply_add(sums, x, k, even);
    Vec odd[C];
    const IntVec upper = broadcast_int(static_cast<int32_t>(0xffff0000u));
    for (int c = 0; c < C; ++c) odd[c] = from_bits(load_int(pairs + c * kLanes) & upper);
    multiply_add(sums, x, k + 1, odd);
  }

  template <int R, int C>
  static SDE_INLINE void half_step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t k, const uint16_t* w) {
    const int32_t* pairs = reinterpret_cast<const int32_t*>(w);
    Vec even[C];
    for (int c = 0; c < C; ++c) even[c] = from_bits(shift_left<16>(load_int(pairs + c * kLanes)));
    multiply_add(sums, x, k, even);
  }

  static SDE_INLINE void prepare_rows(const LinearArgs& args, int64_t first, int64_t count, void*, const float** x) {
    for (int64_t r = 0; r < count; ++r) x[r] = input_row(args, first + r);
  }

  template <int R, int C>
  static SDE_INLINE void multiply_add(Vec (&sums)[R][C], const float* const (&x)[R], int64_t k, const Vec (&w)[C]) {
    for (int r = 0; r < R; ++r) {
      const Vec value = broadcast(x[r][k]);
      for (int c = 0; c < C; ++c) sums[r][c] = fma(value, w[c], sums[r][c]);
    }
  }
};

struct Fp32 {
  using Weight = float;
  using Input = float;
  static constexpr int kDepth = 1;

  template <int R, int C>
  static SDE_INLINE void step(Vec (&sums)[R][C], const float* const (&x)[R], int64_t k, const float* w) {
    Vec weights[C];
    for (int c = 0; c < C; ++c) weights[c] = load(w + c * kLanes);
    WidenedBf16::multiply_add(sums, x, k, weights);
  }

  template <int R, int C>
  static SDE_INLINE void half_step(Vec (&)[R][C], const float* const (&)[R], int64_t, const float*) {}

  static SDE_INLINE void prepare_rows(const LinearArgs& args, int64_t first, int64_t count, void* s, const float** x) {
    WidenedBf16::prepare_rows(args, first, count, s, x);
  }
};

// R rows against C vectors of columns of a chunk: partial (+)= x W^T.
template <class Kernel, int R, int C>
SDE_INLINE void run_pass(const typename Kernel::Input* const* rows, const Chunk<Kernel>& chunk, int column,
                         const char* ahead, float* partial) {
  const typename Kernel::Input* x[R];
  for (int r = 0; r < R; ++r) x[r] = rows[r] + chunk.first_input;
  const typename Kernel::Weight* w = chunk.weight + column * Kernel::kDepth;
  constexpr int64_t kStride = kBlockOutputs * Kernel::kDepth;
  constexpr int kLinesPerStep = C * kLanes * 4 > kLine ? C * kLanes * 4 / kLine : 1;
  Vec sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = zeros();
  }
  const int64_t whole = chunk.num_inputs / Kernel::kDepth * Kernel::kDepth;
  const int64_t fetching = chunk.lines_per_pass / kLinesPerStep * Kernel::kDepth;
  int64_t k = 0;
  for (; k < (fetching < whole ? fetching : whole); k += Kernel::kDepth, w += kStride) {
    for (int i = 0; i < kLinesPerStep; ++i) __builtin_prefetch(ahead + i * kLine);
    ahead += kLinesPerStep * kLine;
    Kernel::template step<R, C>(sums, x, k, w);
  }
  for (; k < whole; k += Kernel::kDepth, w += kStride) Kernel::template step<R, C>(sums, x, k, w);
  if (k < chunk.num_inputs) Kernel::template half_step<R, C>(sums, x, k, w);
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      float* p = partial + r * kBlockOutputs + column + c * kLanes;
      store(p, chunk.is_first ? sums[r][c] : load(p) + sums[r][c]);
    }
  }
}

// All 32 columns for R rows, C vectors at a time; `pass` counts the passes over this chunk.
template <class Kernel, int R, int C>
void run_group(const typename Kernel::Input* const* rows, const Chunk<Kernel>& chunk, int64_t pass, float* partial) {
  static_assert(kBlockVectors % C == 0, "columns must fill whole passes");
  for (int c = 0; c < kBlockVectors; c += C, ++pass) {
    const char* ahead = chunk.ahead + pass * chunk.lines_per_pass * kLine;
    run_pass<Kernel, R, C>(rows, chunk, c * kLanes, ahead, partial);
  }
}

// Thirty-two registers hold 12 x 2 vectors of sums, sixteen hold 3 x 4 or 6 x 2, beside weights and an activation.
constexpr int kMaxGroup = kLanes == 16 ? 12 : 6;
constexpr int columns_at_once(int rows) { return kLanes == 16 || rows > 3 ? 2 : 4; }

template <class Kernel>
struct Group {
  void (*run)(const typename Kernel::Input* const*, const Chunk<Kernel>&, int64_t pass, float* partial);
  int passes;
};

template <class Kernel>
struct Groups {
  Group<Kernel> of_size[kMaxGroup + 1];
};

template <class Kernel, int... Less>
constexpr Groups<Kernel> all_groups(std::integer_sequence<int, Less...>) {
  return {{{nullptr, 0},
           {run_group<Kernel, Less + 1, columns_at_once(Less + 1)>, kBlockVectors / columns_at_once(Less + 1)}...}};
}

template <class Kernel>
const Group<Kernel>& group_of(int64_t rows) {
  static constexpr Groups<Kernel> kGroups = all_groups<Kernel>(std::make_integer_sequence<int, kMaxGroup>());
  return kGroups.of_size[rows];
}

// Size of the next group of rows: as few groups as possible, as even as possible.
SDE_INLINE int64_t next_group(int64_t rows_left) {
  const int64_t groups = (rows_left + kMaxGroup - 1) / kMaxGroup;
  return (rows_left + groups - 1) / groups;
}

// Adds bias, then stores or accumulates `n` columns.
SDE_INLINE void finish(Vec value, const float* bias, float* out, int n, bool accumulate) {
  if (n >= kLanes) {
    if (bias != nullptr) value = value + load(bias);
    store(out, accumulate ? load(out) + value : value);
  } else if (n > 0) {
    if (bias != nullptr) value = value + load_partial(bias, n);
    store_partial(out, accumulate ? load_partial(out, n) + value : value, n);
  }
}

// out = sums (+ bias) for one block of columns.
SDE_INLINE void finish_block(const LinearArgs& args, int64_t block, int64_t first_row, int64_t rows,
                             const float* partial) {
  const int64_t column = block * kBlockOutputs;
  const int left = static_cast<int>(args.num_outputs - column);
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.out + (first_row + r) * args.num_outputs + column;
    for (int c = 0; c < kBlockOutputs && c < left; c += kLanes) {
      finish(load(partial + r * kBlockOutputs + c), args.bias == nullptr ? nullptr : args.bias + column + c, out + c,
             left - c, args.accumulate);
    }
  }
}

// out = silu(gate) * up; a block holds 16 gates and their 16 ups.
SDE_INLINE void finish_gated_block(const LinearArgs& args, int64_t block, int64_t first_row, int64_t rows,
                                   const float* partial) {
  constexpr int kHalf = kBlockOutputs / 2;
  const int64_t features = args.num_outputs / 2;
  const int64_t feature = block * kHalf;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = args.out + (first_row + r) * features + feature;
    for (int c = 0; c < kHalf && feature + c < features; c += kLanes) {
      const int n = static_cast<int>(features - feature - c);
      Vec gate = load(partial + r * kBlockOutputs + c);
      Vec up = load(partial + r * kBlockOutputs + kHalf + c);
      if (args.bias != nullptr) {
        const float* bias = args.bias + feature + c;
        gate = gate + (n < kLanes ? load_partial(bias, n) : load(bias));
        up = up + (n < kLanes ? load_partial(bias + features, n) : load(bias + features));
      }
      finish(gate / (broadcast(1.0f) + exp(-gate)) * up, nullptr, out + c, n, false);
    }
  }
}

// One block of columns for up to kLinearMaxRows rows.
template <class Kernel>
SDE_INLINE void run_block(const LinearArgs& args, const typename Kernel::Input* const* x, int64_t rows, int64_t block,
                          float* partial) {
  const int64_t padded = (args.num_inputs + Kernel::kDepth - 1) / Kernel::kDepth * Kernel::kDepth;
  int64_t passes = 0;
  for (int64_t r = 0; r < rows; r += next_group(rows - r)) passes += group_of<Kernel>(next_group(rows - r)).passes;
  const auto* weight = static_cast<const typename Kernel::Weight*>(args.weight) + block * padded * kBlockOutputs;
  for (int64_t k = 0; k < args.num_inputs; k += kChunk, weight += kChunk * kBlockOutputs) {
    const int64_t inputs = args.num_inputs - k < kChunk ? args.num_inputs - k : kChunk;
    const int64_t bytes = inputs * kBlockOutputs * static_cast<int64_t>(sizeof(*weight));
    const char* next = reinterpret_cast<const char*>(weight) + bytes;
    const Chunk<Kernel> chunk{weight, k, inputs, k == 0, next, (bytes / kLine + passes - 1) / passes};
    int64_t pass = 0;
    for (int64_t r = 0; r < rows; r += next_group(rows - r)) {
      const Group<Kernel>& group = group_of<Kernel>(next_group(rows - r));
      group.run(x + r, chunk, pass, partial + r * kBlockOutputs);
      pass += group.passes;
    }
  }
}

template <class Kernel>
SDE_INLINE void linear_blocks(const LinearArgs& args, int64_t begin, int64_t end, void* scratch) {
  alignas(64) float partial[kLinearMaxRows * kBlockOutputs];
  const typename Kernel::Input* x[kLinearMaxRows];
  const int64_t num_rows = *args.num_rows;
  for (int64_t first = 0; first < num_rows; first += kLinearMaxRows) {
    const int64_t rows = num_rows - first < kLinearMaxRows ? num_rows - first : kLinearMaxRows;
    Kernel::prepare_rows(args, first, rows, scratch, x);
    for (int64_t block = begin; block < end; ++block) {
      run_block<Kernel>(args, x, rows, block, partial);
      if (args.silu_gate) {
        finish_gated_block(args, block, first, rows, partial);
      } else {
        finish_block(args, block, first, rows, partial);
      }
    }
  }
}

}  // namespace linear_op
}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
