#include "cpu/gather_pending.h"

namespace sdengine {

void gather_pending(const GatherPendingArgs& args, Worker& worker) {
  if (worker.index == 0) gather_pending_tokens(args);
}

}  // namespace sdengine
