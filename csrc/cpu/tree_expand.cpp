#include "cpu/tree_expand.h"

#include <algorithm>

namespace sdengine {

// A few microseconds of integer work: sharing it would cost more in barriers than it saves.
void tree_expand(const TreeExpandArgs& args, Worker& worker) {
  if (worker.index == 0) expand_layer(args);
}

void place_expand_scratch(TreeExpandArgs& args) {
  static_assert(sizeof(Candidate) == 3 * sizeof(uint64_t), "three words of scratch per candidate");
  const int64_t nodes = args.tree.capacity;
  const int64_t candidates = int64_t{args.max_width} * args.num_candidates;
  const int64_t keys = std::max(args.batch_size * nodes, nodes + candidates);
  args.keys = args.scratch;
  args.buffer = args.keys + keys;
  uint64_t* rest = args.buffer + keys;
  args.candidates = reinterpret_cast<Candidate*>(rest);
  args.remap = reinterpret_cast<int32_t*>(rest + 3 * candidates);
}

}  // namespace sdengine
