#include "cpu/vocab_passes.h"
#include "cpu/vocab_passes.inl"

namespace sdengine {
extern const VocabPasses kVocabPassesAvx2;
const VocabPasses kVocabPassesAvx2 = kThesePasses;
}  // namespace sdengine
