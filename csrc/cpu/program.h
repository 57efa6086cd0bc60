// A program: a list of launches on static buffers, recorded once and replayed in one call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"

namespace sdengine {

class Program {
 public:
  // Adds a launch of `kernel(args, worker)`; args are copied. Every worker runs it, then all meet
  // at a barrier.
  template <class Args>
  void append(const char* name, void (*kernel)(const Args&, Worker&), const Args& args) {
    struct Bound {
      void (*kernel)(const Args&, Worker&);
      Args args;
    };
    auto bound = std::make_shared<const Bound>(Bound{kernel, args});
    launches_.push_back({name,
                         [](const void* data, Worker& worker) {
                           const auto* launch = static_cast<const Bound*>(data);
                           launch->kernel(launch->args, worker);
                         },
                         bound});
  }

  // Appends every launch of another program (shared, not copied).
  void append_program(const Program& other);

  void replay(ThreadPool& pool) const;

  // As replay, but returns nanoseconds per launch as worker 0 saw them, barrier included.
  std::vector<int64_t> replay_timed(ThreadPool& pool) const;

  size_t size() const { return launches_.size(); }
  std::vector<std::string> names() const;

 private:
  struct Launch {
    const char* name;
    void (*invoke)(const void*, Worker&);
    std::shared_ptr<const void> args;
  };
  std::vector<Launch> launches_;
};

}  // namespace sdengine
