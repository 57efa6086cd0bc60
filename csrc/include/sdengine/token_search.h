// Whether a token is among others.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

// Whether one of `count` tokens equals `token`; a plain reduction, which compilers vectorise.
SDE_HD inline bool contains(const int32_t* tokens, int32_t count, int32_t token) {
  uint32_t hits = 0;
  for (int32_t i = 0; i < count; ++i) hits |= tokens[i] == token ? 1u : 0u;
  return hits != 0;
}

// Whether a token is one of those that stop sequence b.
template <class Args>
SDE_HD inline bool is_stop_token(const Args& args, int64_t b, int32_t token) {
  return contains(args.stop_tokens + b * args.num_stop_tokens, args.num_stop_tokens, token);
}

}  // namespace sdengine
