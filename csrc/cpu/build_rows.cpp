#include "cpu/build_rows.h"

namespace sdengine {

// About a microsecond of integer work: sharing it would cost more in barriers than it saves.
void build_rows(const BuildRowsArgs& args, Worker& worker) {
  if (worker.index == 0) build_row_batch(args);
}

}  // namespace sdengine
