// Where a timestamp goes.
#pragma once

#include <cstdint>

namespace sdengine {

struct TimestampArgs {
  int64_t* out_ns;  // [1]
};

}  // namespace sdengine
