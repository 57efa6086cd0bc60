// tree_expand: merges one draft layer into the trees of the batch and emits the next layer's rows.
#pragma once

#include "cpu/worker.h"
#include "sdengine/tree_expand.h"

namespace sdengine {

void tree_expand(const TreeExpandArgs& args, Worker& worker);

// Cuts the scratch tensor into the arrays that a layer needs.
void place_expand_scratch(TreeExpandArgs& args);

}  // namespace sdengine
