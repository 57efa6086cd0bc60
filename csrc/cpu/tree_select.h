// tree_select: trims the drafted trees over the batch and renumbers them.
#pragma once

#include "cpu/worker.h"
#include "sdengine/tree_select.h"

namespace sdengine {

void tree_select(const TreeSelectArgs& args, Worker& worker);

// Cuts the scratch tensor into the arrays of a selection.
void place_select_scratch(TreeSelectArgs& args);

}  // namespace sdengine
