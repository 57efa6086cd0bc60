#include "cpu/vocab_passes.h"
#include "cpu/vocab_passes.inl"

namespace sdengine {
extern const VocabPasses kVocabPassesPortable;
const VocabPasses kVocabPassesPortable = kThesePasses;
}  // namespace sdengine
