// Which KV entries are gathered after a walk; see kernels/move_plan.py.
#pragma once

#include <cstdint>

namespace sdengine {

// Entry k of a sequence's plan moves from logical index source[k] to dst_start + k, which is never
// above it. commit_plan writes plans, kv_compact only reads them.
struct MovePlanView {
  int32_t* source;     // [B, M], the first num_moves ascending
  int32_t* dst_start;  // [B]
  int32_t* num_moves;  // [B]
  int32_t capacity;    // M
};

}  // namespace sdengine
