// Native calls during which other Python threads run.
#pragma once

#include <pybind11/pybind11.h>

#include <type_traits>

namespace sdengine {

// Runs `call` without the interpreter's lock. pybind11's guard takes the lock back in a destructor;
// where the interpreter has ended meanwhile, Python ends the thread there instead (pthread_exit),
// and the unwinding that this begins must not come out of a destructor: the process aborted when a
// daemon thread was in the middle of a step.
template <class Call>
std::invoke_result_t<Call> without_gil(Call call) {
  PyThreadState* const state = PyEval_SaveThread();
  const auto take_back = [state] { PyEval_RestoreThread(state); };
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<Call>>) {
      call();
      take_back();
    } else {
      auto result = call();
      take_back();
      return result;
    }
  } catch (const std::exception&) {
    take_back();
    throw;
  }
}

}  // namespace sdengine
