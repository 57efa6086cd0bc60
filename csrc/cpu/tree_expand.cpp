#include "cpu/tree_expand.h"

namespace sdengine {

// A few microseconds of integer work: sharing it would cost more in barriers than it saves.
void tree_expand(const TreeExpandArgs& args, Worker& worker) {
  if (worker.index == 0) expand_layer(args);
}

}  // namespace sdengine
