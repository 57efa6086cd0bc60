// timestamp: notes when a program reaches this launch.
#pragma once

#include "cpu/worker.h"

namespace sdengine {

struct TimestampArgs {
  int64_t* out_ns;  // [1]
};

void timestamp(const TimestampArgs& args, Worker& worker);

}  // namespace sdengine
