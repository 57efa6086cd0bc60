// Ranking by (value descending, order ascending) as plain integers, and the k-th best of an array
// without sorting it.
#pragma once

#include <cstdint>
#include <cstring>

#include "sdengine/hd.h"

namespace sdengine {

// A larger key ranks earlier. `value` must be >= 0 (the bits of such floats order like integers)
// and not NaN.
SDE_HD inline uint64_t rank_key(float value, uint32_t order) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (uint64_t{bits} << 32) | (0xffffffffu - order);
}

// The value a key was made of.
SDE_HD inline float key_value(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SDE_HD inline void swap_keys(uint64_t& a, uint64_t& b) {
  const uint64_t held = a;
  a = b;
  b = held;
}

// The k-th largest of `count` distinct keys, 1 <= k <= count; permutes them. Quickselect, median of
// three.
SDE_HD inline uint64_t nth_largest(uint64_t* keys, int32_t count, int32_t k) {
  int32_t low = 0, high = count - 1;
  const int32_t target = k - 1;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (keys[middle] > keys[low]) swap_keys(keys[middle], keys[low]);
    if (keys[high] > keys[low]) swap_keys(keys[high], keys[low]);
    if (keys[high] > keys[middle]) swap_keys(keys[high], keys[middle]);
    const uint64_t pivot = keys[middle];
    int32_t left = low, right = high;
    while (left <= right) {
      while (keys[left] > pivot) ++left;
      while (keys[right] < pivot) --right;
      if (left > right) break;
      swap_keys(keys[left++], keys[right--]);
    }
    if (target <= right) {
      high = right;
    } else if (target >= left) {
      low = left;
    } else {
      return pivot;
    }
  }
  return keys[low];
}

// Sorts keys in descending order: insertion sort of runs of eight, then merges through `buffer` (as
// large as `keys`).
SDE_HD inline void sort_descending(uint64_t* keys, uint64_t* buffer, int32_t count) {
  constexpr int32_t kRun = 8;
  for (int32_t start = 0; start < count; start += kRun) {
    const int32_t end = start + kRun < count ? start + kRun : count;
    for (int32_t i = start + 1; i < end; ++i) {
      const uint64_t key = keys[i];
      int32_t j = i;
      for (; j > start && keys[j - 1] < key; --j) keys[j] = keys[j - 1];
      keys[j] = key;
    }
  }
  for (int32_t width = kRun; width < count; width *= 2) {
    for (int32_t start = 0; start < count; start += 2 * width) {
      const int32_t middle = start + width < count ? start + width : count;
      const int32_t end = start + 2 * width < count ? start + 2 * width : count;
      int32_t left = start, right = middle;
      for (int32_t out = start; out < end; ++out) {
        const bool takes_left = left < middle && (right >= end || keys[left] > keys[right]);
        buffer[out] = takes_left ? keys[left++] : keys[right++];
      }
    }
    for (int32_t i = 0; i < count; ++i) keys[i] = buffer[i];
  }
}

}  // namespace sdengine
