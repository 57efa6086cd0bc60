#include "cpu/vocab_passes.h"
#include "cpu/vocab_passes.inl"

namespace sdengine {
extern const VocabPasses kVocabPassesAvx512;
const VocabPasses kVocabPassesAvx512 = kThesePasses;
}  // namespace sdengine
