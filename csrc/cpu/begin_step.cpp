#include "cpu/begin_step.h"

namespace sdengine {

void begin_step(const BeginStepArgs& args, Worker& worker) {
  if (worker.index == 0) begin_sequences(args);
}

}  // namespace sdengine
