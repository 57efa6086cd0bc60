// commit_plan: bookkeeping after the walk, for all sequences.
#pragma once

#include "cpu/worker.h"
#include "sdengine/commit_plan.h"

namespace sdengine {

void commit_plan(const CommitPlanArgs& args, Worker& worker);

}  // namespace sdengine
