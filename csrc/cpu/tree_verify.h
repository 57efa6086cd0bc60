// tree_verify: walks every sequence's token tree.
#pragma once

#include "cpu/row_plan.h"
#include "cpu/worker.h"
#include "sdengine/tree_verify.h"

namespace sdengine {

void tree_verify(const TreeVerifyArgs& args, Worker& worker);

}  // namespace sdengine
