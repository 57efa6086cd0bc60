#include "cpu/tree_select.h"

namespace sdengine {

// About a microsecond of integer work: sharing it would cost more in barriers than it saves.
void tree_select(const TreeSelectArgs& args, Worker& worker) {
  if (worker.index == 0) select_trees(args);
}

void place_select_scratch(TreeSelectArgs& args) {
  const int64_t nodes = args.draft.capacity, keys = args.batch_size * nodes;
  args.keys = args.scratch;
  args.buffer = args.keys + keys;
  args.sizes = reinterpret_cast<int32_t*>(args.buffer + keys);
  args.places = args.sizes + nodes + 1;
  args.next = args.places + nodes + 1;
}

}  // namespace sdengine
