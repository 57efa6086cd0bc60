// Packs every sequence's pending tokens: what is known but not yet in the KV cache.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

struct GatherPendingArgs {
  const int32_t* history;        // [B, S]
  int64_t max_history;           // S
  const int32_t* computed_lens;  // [B]
  const int32_t* pending_lens;   // [B]
  const int32_t* num_seqs;       // [1]
  int32_t capacity;              // N
  int32_t* pending_tokens;       // [N]
  int32_t* cu_pending;           // [B + 1]
};

SDE_HD inline void gather_pending_tokens(const GatherPendingArgs& args) {
  int32_t packed = 0;
  args.cu_pending[0] = 0;
  for (int32_t b = 0; b < *args.num_seqs; ++b) {
    const int32_t* tokens = args.history + b * args.max_history + args.computed_lens[b];
    for (int32_t i = 0; i < args.pending_lens[b] && packed < args.capacity; ++i) {
      args.pending_tokens[packed++] = tokens[i];
    }
    args.cu_pending[b + 1] = packed;
  }
}

}  // namespace sdengine
