// csrc/cpu/vec.h against the C library and against exact integer arithmetic, for one instruction
// set.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

#include "cpu/number_format.h"
#include "cpu/vec.h"

namespace {

using namespace sdengine;

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  if (++failures < 20) std::printf("failed: %s\n", what);
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// Distance in units of the last place of the correctly rounded result.
double ulps(float got, double want) {
  const float rounded = static_cast<float>(want);
  if (got == rounded || (std::isnan(got) && std::isnan(rounded))) return 0;
  const double next = std::nextafter(std::fabs(rounded), std::numeric_limits<float>::infinity());
  return std::fabs(got - want) / (next - std::fabs(rounded));
}

template <class Function, class Oracle>
void sweep(const char* name, Function function, Oracle oracle, double first, double last) {
  constexpr int kSamples = 400000;
  double worst = 0;
  for (int i = 0; i < kSamples; i += kLanes) {
    float in[kLanes], out[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      in[j] = static_cast<float>(first + (last - first) * (i + j) / kSamples);
    }
    store(out, function(load(in)));
    for (int j = 0; j < kLanes; ++j) worst = std::fmax(worst, ulps(out[j], oracle(in[j])));
  }
  std::printf("%s: %.2f ulp\n", name, worst);
  expect(worst <= 1.5, name);
}

template <class Function, class Oracle>
void special_values(const char* name, Function function, Oracle oracle) {
  const float inf = std::numeric_limits<float>::infinity();
  const float values[] = {0.0f,  -0.0f, -1.0f,  inf,   -inf,    NAN,    1e-45f, 1e-40f,
                          3e38f, 88.7f, 88.73f, 200.f, -103.9f, -104.f, -200.f, 1.0f};
  for (float value : values) {
    float out[kLanes];
    store(out, function(broadcast(value)));
    const double want = oracle(value);
    const bool is_same = std::isnan(want) ? std::isnan(out[0]) : ulps(out[0], want) <= 1.5;
    if (!is_same) std::printf("%s(%g) = %g, expected %g\n", name, value, out[0], want);
    expect(is_same, name);
  }
}

void check_functions() {
  const auto e = [](Vec a) { return sdengine::exp(a); };
  const auto l = [](Vec a) { return sdengine::log(a); };
  const auto l1 = [](Vec a) { return sdengine::log1p(a); };
  sweep("exp", e, [](double x) { return std::exp(x); }, -87, 88.7);
  sweep("exp of subnormals", e, [](double x) { return std::exp(x); }, -110, -87);
  sweep("exp near 0", e, [](double x) { return std::exp(x); }, -1, 1);
  sweep("log", l, [](double x) { return std::log(x); }, 1e-6, 1000);
  sweep("log near 1", l, [](double x) { return std::log(x); }, 0.5, 2);
  sweep("log1p", l1, [](double x) { return std::log1p(x); }, -0.9999, 3);
  sweep("log1p near 0", l1, [](double x) { return std::log1p(x); }, -1e-5, 1e-5);
  special_values("exp", e, [](double x) { return std::exp(x); });
  special_values("log", l, [](double x) { return std::log(x); });
}

void check_integers() {
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    int32_t a[kLanes], b[kLanes], high[kLanes], low[kLanes], out[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      a[j] = static_cast<int32_t>(random());
      b[j] = static_cast<int32_t>(random());
    }
    IntVec upper, lower;
    mul_high_low(load_int(a), load_int(b), &upper, &lower);
    store_int(high, upper);
    store_int(low, lower);
    float floats[kLanes];
    store(floats, unsigned_to_float(load_int(a)));
    for (int j = 0; j < kLanes; ++j) {
      const uint64_t product = uint64_t{static_cast<uint32_t>(a[j])} * static_cast<uint32_t>(b[j]);
      expect(static_cast<uint32_t>(high[j]) == product >> 32, "mul_high_low: high");
      expect(static_cast<uint32_t>(low[j]) == static_cast<uint32_t>(product), "mul_high_low: low");
      expect(floats[j] == static_cast<float>(static_cast<uint32_t>(a[j])), "unsigned_to_float");
    }
    store_int(out, (load_int(a) ^ shift_left<7>(load_int(b))) +
                       shift_right_logical<3>(load_int(a)) -
                       shift_right_arithmetic<5>(load_int(b)));
    for (int j = 0; j < kLanes; ++j) {
      const uint32_t x = a[j], y = b[j];
      const uint32_t want = (x ^ y << 7) + (x >> 3) - static_cast<uint32_t>(b[j] >> 5);
      expect(static_cast<uint32_t>(out[j]) == want, "shifts and sums");
    }
    const uint32_t smaller = bits_of(less(load_int(a), load_int(b)));
    for (int j = 0; j < kLanes; ++j)
      expect((smaller >> j & 1) == (a[j] < b[j]), "less of integers");
  }
}

void check_bf16() {
  std::mt19937 random(2);
  for (int round = 0; round < 20000; ++round) {
    int32_t bits[kLanes];
    for (int j = 0; j < kLanes; ++j) bits[j] = static_cast<int32_t>(random());
    if (round % 3 == 0) bits[0] = (bits[0] & 0x7fff0000) | 0x8000;  // ties
    uint16_t halves[kLanes];
    float back[kLanes];
    store_bf16(halves, from_bits(load_int(bits)));
    store(back, load_bf16(halves));
    for (int j = 0; j < kLanes; ++j) {
      expect(halves[j] == float_to_bf16(float_of(bits[j])), "store_bf16");
      expect(same_bits(back[j], bf16_to_float(halves[j])), "load_bf16");
    }
  }
}

// What 16 bits mean as IEEE 754 binary16, by the standard's own formula.
float value_of_half(uint32_t bits) {
  const float sign = bits & 0x8000u ? -1.0f : 1.0f;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

// The one of `number` and its neighbours nearest to x; of two, the even one.
bool is_nearest(float x, Half number) {
  const double error = std::fabs(double{x} - value_of_half(number.bits));
  for (int step : {-1, 1}) {
    const uint32_t other = number.bits + step;
    if ((other & 0x7fffu) >= 0x7c00u || (other ^ number.bits) & 0x8000u) continue;
    const double theirs = std::fabs(double{x} - value_of_half(other));
    if (theirs < error || (theirs == error && number.bits % 2 == 1)) return false;
  }
  return true;
}

void check_half() {
  Half halves[kLanes];
  float back[kLanes];
  for (uint32_t bits = 0; bits < 0x10000u; bits += kLanes) {
    for (int j = 0; j < kLanes; ++j) halves[j] = {static_cast<uint16_t>(bits + j)};
    store(back, load_half(halves));
    for (int j = 0; j < kLanes; ++j) {
      const float wanted = value_of_half(bits + j);
      expect(std::isnan(wanted) ? std::isnan(back[j]) : same_bits(back[j], wanted), "load_half");
      expect(same_bits(back[j], half_to_float(halves[j])), "half_to_float");
    }
  }
  std::mt19937 random(3);
  for (int round = 0; round < 40000; ++round) {
    int32_t bits[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      bits[j] = static_cast<int32_t>(random());
      if (round % 4 == 0) continue;  // mostly beyond float16
      const uint32_t exponent = 100 + random() % 45;
      bits[j] = static_cast<int32_t>((bits[j] & 0x807fffffu) | exponent << 23);
      if (round % 4 == 1) bits[j] &= ~0xfff;  // ties of normal numbers
    }
    store_half(halves, from_bits(load_int(bits)));
    for (int j = 0; j < kLanes; ++j) {
      const float x = float_of(bits[j]);
      expect(halves[j].bits == float_to_half(x).bits, "store_half");
      if (std::fabs(x) < 65520.0f) {
        expect(is_nearest(x, halves[j]), "half: nearest");
        expect(std::signbit(x) == (halves[j].bits >> 15 == 1), "half: sign");
      } else if (!std::isnan(x)) {
        expect((halves[j].bits & 0x7fffu) == 0x7c00u, "half: infinity");
      } else {
        expect((halves[j].bits & 0x7fffu) > 0x7c00u, "half: NaN");
      }
    }
  }
}

void check_partial_and_masks() {
  float x[kLanes];
  uint16_t half[kLanes];
  for (int j = 0; j < kLanes; ++j) x[j] = static_cast<float>(j + 1);
  store_bf16(half, load(x));
  for (int n = 0; n <= kLanes; ++n) {
    float out[kLanes], wide[kLanes];
    int32_t ints[kLanes];
    for (float& value : out) value = -1;
    store_partial(out, load_partial(x, n), n);
    store(wide, load_partial(x, n) + load_as_float_partial(half, n));
    store_int(ints, load_int_partial(reinterpret_cast<const int32_t*>(x), n));
    for (int j = 0; j < kLanes; ++j) {
      expect(out[j] == (j < n ? x[j] : -1), "store_partial");
      expect(wide[j] == (j < n ? 2 * x[j] : 0), "load_partial");
      expect((ints[j] != 0) == (j < n), "load_int_partial");
    }
    expect(bits_of(first_lanes(n)) == (1u << n) - 1u, "first_lanes");
    expect(any(first_lanes(n)) == (n > 0) && all(first_lanes(n)) == (n == kLanes), "any and all");
    expect(bits_of(~first_lanes(n)) == ((1u << kLanes) - 1u & ~((1u << n) - 1u)), "not");
  }
}

void check_floats() {
  float x[kLanes], out[kLanes];
  for (int j = 0; j < kLanes; ++j) x[j] = (j * 7 % 5 - 2) * 0.5f;
  float tree[kLanes];
  std::memcpy(tree, x, sizeof(tree));
  float largest = x[0];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) tree[j] += tree[j + width];
  }
  for (float value : x) largest = std::fmax(largest, value);
  expect(sum(load(x)) == tree[0], "sum");
  expect(max_lane(load(x)) == largest, "max_lane");
  store(out, round(load(x)));
  for (int j = 0; j < kLanes; ++j) expect(out[j] == std::nearbyint(x[j]), "round");
  store(out, select(less(load(x), zeros()), -load(x), sqrt(load(x))));
  for (int j = 0; j < kLanes; ++j) {
    expect(out[j] == (x[j] < 0 ? -x[j] : std::sqrt(x[j])), "select, negation, sqrt");
  }
  store(out, max(broadcast(1.0f), broadcast(NAN)));
  expect(std::isnan(out[0]), "max returns its second argument on NaN");
  store(out, min(broadcast(NAN), broadcast(1.0f)));
  expect(out[0] == 1.0f, "min returns its second argument on NaN");
}

}  // namespace

int main() {
  check_functions();
  check_integers();
  check_bf16();
  check_half();
  check_partial_and_masks();
  check_floats();
  std::printf(failures == 0 ? "vec: ok, %d lanes\n" : "vec: failed, %d lanes\n", kLanes);
  return failures == 0 ? 0 : 1;
}
