#include "cpu/commit_plan.h"

namespace sdengine {

void commit_plan(const CommitPlanArgs& args, Worker& worker) {
  const Range seqs = worker.share(*args.num_seqs);
  for (int64_t b = seqs.begin; b < seqs.end; ++b) commit_sequence(args, b);
}

}  // namespace sdengine
