// Fuzzing without a framework: cases register themselves, the driver runs each with many seeds.
//
// A case is a function of a random source: it makes an input, runs a kernel on buffers of exactly
// the promised size (so that the address sanitizer sees every step beyond), and calls `require` on
// what must hold afterwards. To add one, write fuzz_<name>.cpp with SDENGINE_FUZZ(name, seeds) {
// ... }; the test compiles every fuzz_*.cpp beside the driver.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace fuzz {

// A bug planted on purpose, chosen by the environment variable SDENGINE_PLANT, so that tests see
// that it is found.
enum class Plant {
  kNone = 0,
  kShortBuffer = 1,
  kOverflow = 2,
  kWrongTree = 3,
  kMissingBarrier = 4
};

inline Plant plant() {
  static const Plant chosen = [] {
    const char* text = std::getenv("SDENGINE_PLANT");
    return static_cast<Plant>(text ? std::atoi(text) : 0);
  }();
  return chosen;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

  // Uniform in [low, high].
  int32_t integer(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }

  float unit() { return static_cast<float>(bits() >> 40) * (1.0f / (1 << 24)); }

  bool chance(float probability) { return unit() < probability; }

 private:
  uint64_t state_;
};

// A heap array of exactly `size` elements.
template <class T>
class Exact {
 public:
  explicit Exact(size_t size, T value = T{}) : size_(size), data_(new T[size]) {
    for (size_t i = 0; i < size; ++i) data_[i] = value;
  }
  T* get() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  size_t size_;
  std::unique_ptr<T[]> data_;
};

struct Case {
  const char* name;
  int seeds;
  void (*run)(Random&);
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registration {
  Registration(const char* name, int seeds, void (*run)(Random&)) {
    cases().push_back({name, seeds, run});
  }
};

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "check failed: %s\n", what);
  std::abort();
}

}  // namespace fuzz

#define SDENGINE_FUZZ(name, seeds)                                          \
  static void fuzz_##name(fuzz::Random& random);                            \
  static fuzz::Registration registration_##name(#name, seeds, fuzz_##name); \
  static void fuzz_##name(fuzz::Random& random)
