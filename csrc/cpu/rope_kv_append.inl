#include "cpu/norm_row.h"
#include "cpu/rope_kv_append.h"
#include "cpu/shares.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace {

// (a, b) -> (a cos - b sin, b cos + a sin) for one vector of pairs.
SDE_INLINE void rotate_pairs(Vec* a, Vec* b, Vec cosine, Vec sine) {
  const Vec first = fma(*a, cosine, -(*b * sine));
  *b = fma(*b, cosine, *a * sine);
  *a = first;
}

// Rotates pairs (i, i + half) of one head in place.
void rotate(float* head, const float* cos_sin, int64_t half) {
  const float* sin_row = cos_sin + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    Vec a = load(head + i), b = load(head + half + i);
    rotate_pairs(&a, &b, load(cos_sin + i), load(sin_row + i));
    store(head + i, a);
    store(head + half + i, b);
  }
  if (i < half) {
    const int n = static_cast<int>(half - i);
    Vec a = load_partial(head + i, n), b = load_partial(head + half + i, n);
    rotate_pairs(&a, &b, load_partial(cos_sin + i, n), load_partial(sin_row + i, n));
    store_partial(head + i, a, n);
    store_partial(head + half + i, b, n);
  }
}

template <class T>
void copy_head(const float* from, T* to, int64_t width) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store_rounded(to + i, load(from + i));
  if (i < width) {
    const int n = static_cast<int>(width - i);
    store_rounded_partial(to + i, load_partial(from + i, n), n);
  }
}

// Heads of a row are numbered q (H), k (H_kv), v (H_kv), as they lie in memory.
template <class T>
void process_head(const RopeKvAppendArgs& args, int64_t row, int64_t head) {
  const int64_t width = args.head_dim;
  const int64_t heads = args.num_heads + 2 * args.num_kv_heads;
  const bool is_q = head < args.num_heads;
  const bool is_k = !is_q && head < args.num_heads + args.num_kv_heads;
  float* data = args.qkv + (row * heads + head) * width;
  const float* norm = is_q ? args.q_norm : is_k ? args.k_norm : nullptr;
  if (norm != nullptr) norm_row(data, norm, data, width, args.eps);
  if (is_q || is_k) {
    rotate(data, args.cos_sin + args.positions[row] * 2 * args.half_rotary_dim,
           args.half_rotary_dim);
  }
  if (is_q) return;
  const int64_t plane = is_k ? 0 : 1;
  const int64_t kv_head = head - args.num_heads - plane * args.num_kv_heads;
  const int64_t block = args.slots[row] / args.block_size;
  const int64_t offset = args.slots[row] % args.block_size;
  const int64_t index =
      ((block * 2 + plane) * args.num_kv_heads + kv_head) * args.block_size + offset;
  copy_head(data, static_cast<T*>(args.kv_cache) + index * width, width);
}

template <class T>
void process_share(const RopeKvAppendArgs& args, Worker& worker) {
  const int64_t heads = args.num_heads + 2 * args.num_kv_heads;
  const Range range = share_work(worker, *args.num_rows * heads, args.head_dim);
  int64_t row = range.begin / heads;
  int64_t head = range.begin % heads;
  for (int64_t i = range.begin; i < range.end; ++i) {
    process_head<T>(args, row, head);
    if (++head == heads) {
      head = 0;
      ++row;
    }
  }
}

}  // namespace

void rope_kv_append_kernel(const RopeKvAppendArgs& args, Worker& worker) {
  switch (args.cache_format) {
    case Format::kFloat32:
      return process_share<float>(args, worker);
    case Format::kBfloat16:
      return process_share<uint16_t>(args, worker);
    case Format::kFloat16:
      return process_share<Half>(args, worker);
  }
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
