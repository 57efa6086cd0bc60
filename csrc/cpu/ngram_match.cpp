#include "cpu/ngram_match.h"

namespace sdengine {

void ngram_match(const NgramMatchArgs& args, Worker& worker) {
  const Range sequences = worker.share(*args.num_seqs);
  for (int64_t b = sequences.begin; b < sequences.end; ++b) match_ngrams(args, b);
}

}  // namespace sdengine
