// ngram_match: drafts from earlier occurrences of the last tokens. Contract:
// kernels/ngram_match.py.
//
// One block per sequence. Its threads look at kPlaces places of the text each before they meet, the
// most recent first, until the longest matches that may vote are found: one look at 131072 tokens
// is 16 meetings. Where any of them ends a match that is longer than the worst so far, the first
// thread puts those in order; at the end it makes the tree, of at most max_matches continuations,
// in shared memory if that has room: it follows links, one after the other.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "sdengine/ngram_match.h"

namespace sdengine {
namespace {

constexpr int32_t kMatchThreads = 512;
constexpr int32_t kPlaces = 16;

// Words of a sequence's scratch up to which shared memory holds it, 24 KB; tests have room for few.
#if !defined(SDENGINE_MAX_SHARED_NGRAM_WORDS)
#define SDENGINE_MAX_SHARED_NGRAM_WORDS 3072
#endif

struct MatchSpace {
  SDE_HD MatchSpace(unsigned char* base, const NgramMatchArgs& args) : layout(base) {
    const int64_t own = ngram_scratch_words(args.max_matches, args.max_depth);
    has_scratch = own <= SDENGINE_MAX_SHARED_NGRAM_WORDS;
    words = layout.take<uint32_t>(kMaxWarps);
    fresh = layout.take<NgramMatch>(kMatchThreads);
    found = layout.take<int32_t>(2);
    scratch = layout.take<int64_t>(has_scratch ? own : 0);
  }
  SharedLayout layout;
  uint32_t* words;
  NgramMatch* fresh;  // matches of one place of each thread, the most recent first
  int32_t* found;     // matches so far; what the length of another has to exceed
  int64_t* scratch;   // the sequence's, if has_scratch
  bool has_scratch;
};

// Length of the match before `end`, 0 when it is too short to count.
__device__ int32_t counted_length(const NgramMatchArgs& args, const NgramTask& task, int32_t end) {
  if (end < args.min_ngram) return 0;
  const int32_t length = ngram::match_length(task.text, task.length, end, args.max_ngram);
  return length < args.min_ngram ? 0 : length;
}

// Which of a thread's places, k blocks of threads below `high`, end a match longer than `floor`.
__device__ uint32_t find_places(const NgramMatchArgs& args, const NgramTask& task,
                                const Block& block, int32_t high, int32_t floor) {
  const int32_t last = task.text[task.length - 1], first = high - block.rank();
  int32_t tokens[kPlaces];
#pragma unroll
  for (int32_t k = 0; k < kPlaces; ++k) {
    const int32_t end = first - k * block.size();
    tokens[k] = end >= args.min_ngram ? task.text[end - 1] : ~last;
  }
  uint32_t equal = 0, longer = 0;
#pragma unroll
  for (int32_t k = 0; k < kPlaces; ++k) equal |= tokens[k] == last ? 1u << k : 0u;
  for (; equal != 0; equal &= equal - 1) {
    const int32_t k = __ffs(static_cast<int>(equal)) - 1;
    if (counted_length(args, task, first - k * block.size()) > floor) longer |= 1u << k;
  }
  return longer;
}

// Adds matches in order; by the first thread.
__device__ void insert_fresh(const NgramMatchArgs& args, const NgramTask& task,
                             const MatchSpace& space, int32_t count) {
  NgramMatch* matches = task.space.matches;
  int32_t found = space.found[0];
  int32_t floor = space.found[1];
  for (int32_t i = 0; i < count && floor < args.max_ngram; ++i) {
    found = ngram::insert_match(matches, found, args.max_matches, space.fresh[i]);
    if (found == args.max_matches) floor = matches[found - 1].length;
  }
  space.found[0] = found;
  space.found[1] = floor;
}

__global__ void ngram_match_kernel(NgramMatchArgs args) {
  const MatchSpace space(shared_memory(), args);
  const Block block(space.words);
  const int32_t b = static_cast<int32_t>(blockIdx.x);
  if (b >= *args.num_seqs) return;
  NgramTask task = ngram_task(args, b);
  if (space.has_scratch) task.space = ngram::workspace(args, space.scratch);
  if (block.is_leader()) {
    expand::reset_to_root(task.tree, args.root_values, b);
    space.found[0] = 0;
    space.found[1] = args.min_ngram - 1;
  }
  block.sync();
  for (int32_t high = task.length - 1; high >= args.min_ngram && space.found[1] < args.max_ngram;
       high -= kPlaces * block.size()) {
    const uint32_t own = find_places(args, task, block, high, space.found[1]);
    uint32_t any = block.either(own);
    for (; any != 0 && space.found[1] < args.max_ngram; any &= any - 1) {
      const int32_t k = __ffs(static_cast<int>(any)) - 1;
      const int32_t end = high - k * block.size() - block.rank();
      const bool is_match = (own >> k & 1) != 0;
      const RunningSum order = block.count_flags(is_match);
      if (is_match) space.fresh[order.before] = {end, counted_length(args, task, end)};
      block.sync();
      if (block.is_leader()) insert_fresh(args, task, space, order.total);
      block.sync();
    }
  }
  if (block.is_leader()) draft_matches(args, b, task, space.found[0]);
}

}  // namespace
}  // namespace sdengine

SDENGINE_CUDA_API int sdengine_cuda_ngram_match(const sdengine::NgramMatchArgs* args,
                                                int32_t batch_size, void* stream) {
  using namespace sdengine;
  const LaunchShape shape = {dim3(static_cast<unsigned>(batch_size)), kMatchThreads,
                             MatchSpace(nullptr, *args).layout.bytes()};
  return launch(ngram_match_kernel, shape, stream, *args);
}
