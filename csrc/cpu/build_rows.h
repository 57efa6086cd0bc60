// build_rows: packs pending tokens and tree nodes into the rows of a forward pass.
#pragma once

#include "cpu/worker.h"
#include "sdengine/build_rows.h"

namespace sdengine {

void build_rows(const BuildRowsArgs& args, Worker& worker);

}  // namespace sdengine
