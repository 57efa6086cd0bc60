#include "cpu/vocab_passes.h"

#include "cpu/cpu_features.h"

namespace sdengine {

extern const VocabPasses kVocabPassesPortable;
#if defined(__x86_64__)
extern const VocabPasses kVocabPassesAvx2;
extern const VocabPasses kVocabPassesAvx512;
#endif

const VocabPasses& vocab_passes() {
#if defined(__x86_64__)
  static const VocabPasses* const kVariants[] = {&kVocabPassesPortable, &kVocabPassesAvx2,
                                                 &kVocabPassesAvx512};
  return *kVariants[static_cast<int>(selected_vector_isa())];
#else
  return kVocabPassesPortable;
#endif
}

}  // namespace sdengine
