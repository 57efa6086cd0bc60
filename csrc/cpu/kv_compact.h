// kv_compact: moves the keys and values of an accepted path to the front of its tree region, in
// every layer.
#pragma once

#include "cpu/worker.h"
#include "sdengine/kv_compact.h"

namespace sdengine {

void kv_compact(const KvCompactArgs& args, Worker& worker);

}  // namespace sdengine
