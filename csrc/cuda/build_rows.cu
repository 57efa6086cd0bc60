// build_rows: packs pending tokens and tree nodes into the rows of a forward pass. Contract:
// kernels/build_rows.py.
//
// One block per sequence, one thread per row. A block counts the rows before its own for itself.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/build_rows.h"

namespace sdengine {
namespace {

constexpr int32_t kRowThreads = 128;

__device__ void write_logit_rows(const BuildRowsArgs& args, const Block& block, int32_t first_logit,
                                 int32_t count, int32_t end_row) {
  for (int32_t i = block.rank(); i < count; i += block.size())
    args.logit_rows[first_logit + i] = end_row - count + i;
}

__global__ void build_rows_kernel(BuildRowsArgs args) {
  SharedLayout layout(shared_memory());
  const Block block(layout.take<uint32_t>(kMaxWarps));
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  const int32_t num_seqs = *args.num_seqs;
  if (b == 0 && block.is_leader()) {
    args.rows.cu_rows[0] = args.cu_logits[0] = 0;
    if (num_seqs == 0) *args.rows.num_rows = *args.num_logits = 0;
  }
  if (b >= num_seqs) return;

  int32_t row = 0, logit = 0;
  for (int32_t i = block.rank(); i < b; i += block.size()) {
    const build::RowCounts earlier = build::row_counts(args, i);
    row += earlier.pending + earlier.nodes;
    logit += earlier.logits;
  }
  row = block.sum(row);
  logit = block.sum(logit);

  const build::RowCounts counts = build::row_counts(args, b);
  const int32_t computed = args.computed_lens[b];
  for (int32_t i = block.rank(); i < counts.pending; i += block.size())
    build::write_chain_row(args, b, i, row + i, args.tables.slot(b, computed + i));
  const int32_t start = computed + counts.pending;
  const int32_t end = row + counts.pending + counts.nodes;
  for (int32_t i = block.rank(); i < counts.nodes; i += block.size()) {
    build::write_node_row(args, b, args.tree.sequence(b), i + 1, start, row + counts.pending + i,
                          args.tables.slot(b, start + i));
  }
  write_logit_rows(args, block, logit, counts.logits, end);
  if (!block.is_leader()) return;
  args.rows.tree_starts[b] = start;
  args.rows.cu_rows[b + 1] = end;
  args.cu_logits[b + 1] = logit + counts.logits;
  if (b + 1 < num_seqs) return;
  *args.rows.num_rows = end;
  *args.num_logits = logit + counts.logits;
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_build_rows(const sdengine::BuildRowsArgs* args,
                                               int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(batch_size), kRowThreads, kMaxWarps * sizeof(uint32_t)};
  return launch(build_rows_kernel, shape, stream, *args);
}
