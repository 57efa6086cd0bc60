#include "cpu/vocab_passes.h"

#include "cpu/cpu_features.h"

namespace sdengine {

extern const VocabPasses kVocabPassesPortable;
#if defined(__x86_64__)
extern const VocabPasses kVocabPassesAvx2;
extern const VocabPasses kVocabPassesAvx512;
#endif

const VocabPasses& vocab_passes() {
  switch (selected_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return kVocabPassesAvx512;
    case Isa::kAvx2:
      return kVocabPassesAvx2;
#endif
    default:
      return kVocabPassesPortable;
  }
}

}  // namespace sdengine
