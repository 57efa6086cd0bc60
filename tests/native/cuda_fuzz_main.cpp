// Runs the cases on the emulated machine, with a barrier left out when SDENGINE_PLANT asks for it:
// 100 + n leaves out the n-th of every thread.
#include <cstdlib>

#include "cuda_runtime.h"

namespace {

const bool kPlanted = [] {
  const char* text = std::getenv("SDENGINE_PLANT");
  const int plant = text ? std::atoi(text) : 0;
  if (plant > 100) cuda_on_threads::missing_barrier() = plant - 100;
  return plant > 100;
}();

}  // namespace
