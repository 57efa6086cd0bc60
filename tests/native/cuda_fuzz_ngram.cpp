// The device's ngram_match against the serial one, on the same random texts.
#include <cstring>

#include "cuda_entry_points.h"
#include "ngram_case.h"

namespace {

using namespace sdengine;
using fuzz::DraftTreeBuffers;
using fuzz::Exact;
using fuzz::Random;
using fuzz::require;

template <class T>
bool same(const Exact<T>& a, const Exact<T>& b) {
  return std::memcmp(a.get(), b.get(), a.size() * sizeof(T)) == 0;
}

SDENGINE_FUZZ(cuda_ngram_match, 150) {
  const fuzz::NgramCase text(random);
  const DraftTreeBuffers alone(text.batch, text.nodes), device(text.batch, text.nodes);
  const Exact<int64_t> scratch(text.scratch_words());
  const NgramMatchArgs serial = text.with(alone, scratch), args = text.with(device, scratch);
  for (int32_t b = 0; b < text.live[0]; ++b) match_ngrams(serial, b);
  require(sdengine_cuda_ngram_match(&args, text.batch, nullptr) == 0, "ngram_match starts");
  require(same(alone.counts, device.counts), "counts");
  require(same(alone.ints, device.ints) && same(alone.floats, device.floats), "nodes");
}

}  // namespace
