#include "cpu/tree_select.h"

namespace sdengine {

// About a microsecond of integer work: sharing it would cost more in barriers than it saves.
void tree_select(const TreeSelectArgs& args, Worker& worker) {
  if (worker.index == 0) select_trees(args);
}

}  // namespace sdengine
