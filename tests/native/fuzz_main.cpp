// Runs every registered case, or the one named on the command line; a second argument replays one
// seed.
#include <cstring>

#include "fuzz.h"

int main(int argc, char** argv) {
  for (const fuzz::Case& test : fuzz::cases()) {
    if (argc > 1 && std::strcmp(argv[1], test.name) != 0) continue;
    for (int seed = 0; seed < test.seeds; ++seed) {
      if (argc > 2 && std::atoi(argv[2]) != seed) continue;
      fuzz::Random random(static_cast<uint64_t>(seed) * 7919 + 1);
      test.run(random);
    }
    std::printf("%s: %d seeds\n", test.name, test.seeds);
  }
  return 0;
}
