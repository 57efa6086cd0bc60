// timestamp: notes when a program reaches this launch.
#pragma once

#include "cpu/worker.h"
#include "sdengine/timestamp.h"

namespace sdengine {

void timestamp(const TimestampArgs& args, Worker& worker);

}  // namespace sdengine
