// begin_step: what every sequence does in this step.
#pragma once

#include "cpu/worker.h"
#include "sdengine/begin_step.h"

namespace sdengine {

void begin_step(const BeginStepArgs& args, Worker& worker);

}  // namespace sdengine
