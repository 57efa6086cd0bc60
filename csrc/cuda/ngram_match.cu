// ngram_match: drafts from earlier occurrences of the last tokens. Contract:
// kernels/ngram_match.py.
//
// One block per sequence. Its threads compare a stretch of the text each, the most recent first,
// until the longest matches that may vote are found; the first thread puts them in order and makes
// the tree, of at most max_matches continuations.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/ngram_match.h"

namespace sdengine {
namespace {

constexpr int32_t kMatchThreads = 256;

struct MatchSpace {
  SDE_HD explicit MatchSpace(unsigned char* base) : layout(base) {
    words = layout.take<uint32_t>(kMaxWarps);
    fresh = layout.take<NgramMatch>(kMatchThreads);
    found = layout.take<int32_t>(2);
  }
  SharedLayout layout;
  uint32_t* words;
  NgramMatch* fresh;  // matches of one stretch, the most recent first
  int32_t* found;     // matches so far; whether no other can displace one
};

// Length of the match before `end`, 0 when it is too short to count.
__device__ int32_t counted_length(const NgramMatchArgs& args, const NgramTask& task, int32_t end) {
  if (end < args.min_ngram) return 0;
  const int32_t length = ngram::match_length(task.text, task.length, end, args.max_ngram);
  return length < args.min_ngram ? 0 : length;
}

// Adds the matches of a stretch in order; by the first thread.
__device__ void insert_fresh(const NgramMatchArgs& args, const NgramTask& task,
                             const MatchSpace& space, int32_t count) {
  NgramMatch* matches = task.space.matches;
  int32_t found = space.found[0];
  bool is_full = false;
  for (int32_t i = 0; i < count && !is_full; ++i) {
    found = ngram::insert_match(matches, found, args.max_matches, space.fresh[i]);
    is_full = found == args.max_matches && matches[found - 1].length == args.max_ngram;
  }
  space.found[0] = found;
  space.found[1] = is_full ? 1 : 0;
}

__global__ void ngram_match_kernel(NgramMatchArgs args) {
  const MatchSpace space(shared_memory());
  const Block block(space.words);
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  if (b >= *args.num_seqs) return;
  const NgramTask task = ngram_task(args, b);
  if (block.is_leader()) {
    expand::reset_to_root(task.tree, args.root_values, b);
    space.found[0] = space.found[1] = 0;
  }
  block.sync();
  for (int32_t high = task.length - 1; high >= args.min_ngram; high -= block.size()) {
    const int32_t end = high - block.rank();
    const int32_t length = counted_length(args, task, end);
    const RunningSum order = block.count_flags(length > 0);
    if (length > 0) space.fresh[order.before] = {end, length};
    block.sync();
    if (block.is_leader() && order.total > 0) insert_fresh(args, task, space, order.total);
    block.sync();
    if (space.found[1] != 0) break;
  }
  if (block.is_leader()) draft_matches(args, b, task, space.found[0]);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_ngram_match(const sdengine::NgramMatchArgs* args,
                                                int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(static_cast<unsigned>(batch_size)), kMatchThreads,
                             MatchSpace(nullptr).layout.bytes()};
  return launch(ngram_match_kernel, shape, stream, *args);
}
