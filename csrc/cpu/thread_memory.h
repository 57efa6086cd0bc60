// Working memory of a thread, for one launch of a kernel after the other.
#pragma once

#include <cstddef>

namespace sdengine {

// `bytes` of the calling thread, aligned to a cache line; what an earlier call gave is void. It
// grows to the largest launch and goes with the thread. Not on the stack: a caller's thread may
// have little of that (threading.stack_size), and a kernel that overruns it ends the process.
void* thread_memory(size_t bytes);

}  // namespace sdengine
