#include "cpu/thread_memory.h"

#include <cstdint>
#include <memory>

namespace sdengine {
namespace {

constexpr size_t kLineBytes = 64;

struct Memory {
  std::unique_ptr<std::byte[]> bytes;  // not cleared: only what a kernel touches takes memory
  size_t size = 0;
};

}  // namespace

void* thread_memory(size_t bytes) {
  static thread_local Memory memory;
  if (memory.size < bytes + kLineBytes) {
    memory.bytes.reset();  // first: the old memory is of no use to anyone
    memory.size = 0;
    memory.bytes.reset(new std::byte[bytes + kLineBytes]);
    memory.size = bytes + kLineBytes;
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.bytes.get());
  return reinterpret_cast<void*>((address + kLineBytes - 1) / kLineBytes * kLineBytes);
}

}  // namespace sdengine
