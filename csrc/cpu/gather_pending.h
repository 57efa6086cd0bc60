// gather_pending: packs every sequence's pending tokens.
#pragma once

#include "cpu/worker.h"
#include "sdengine/gather_pending.h"

namespace sdengine {

void gather_pending(const GatherPendingArgs& args, Worker& worker);

}  // namespace sdengine
