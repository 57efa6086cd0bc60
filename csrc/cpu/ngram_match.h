// ngram_match: draft trees from earlier occurrences of each sequence's last tokens.
#pragma once

#include "cpu/worker.h"
#include "sdengine/ngram_match.h"

namespace sdengine {

void ngram_match(const NgramMatchArgs& args, Worker& worker);

}  // namespace sdengine
