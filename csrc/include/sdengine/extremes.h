// The smaller and the larger of two numbers, on host and device: the standard library's functions
// are not for the device.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

SDE_HD inline int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }
SDE_HD inline float min_of(float a, float b) { return a < b ? a : b; }
SDE_HD inline float max_of(float a, float b) { return a > b ? a : b; }

}  // namespace sdengine
