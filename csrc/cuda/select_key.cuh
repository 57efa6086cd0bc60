// Many keys in order, by a whole block: the k-th largest by radix selection, eight bits at a time,
// and ranks by counting.
#pragma once

#include "cuda/block.cuh"

namespace sdengine {

constexpr int32_t kRadixBits = 8;
constexpr int32_t kRadixBins = 1 << kRadixBits;

// What one pass settles: the digit of the key sought, how many of the keys that share its digits so
// far rank above it, and how many share this one too.
template <class Count>
struct Digit {
  int32_t value;
  Count above;
  Count inside;
};

// Finds the digit with above < wanted <= above + inside, counting bins from the highest down.
// Called by the block's first warp; one lane finds it and writes it.
template <class Count>
__device__ inline void find_digit(const Count* bins, Count wanted, Digit<Count>* found) {
  constexpr int32_t kBinsPerLane = kRadixBins / kWarpSize;
  const int32_t lane = static_cast<int32_t>(threadIdx.x);
  const int32_t top = kRadixBins - 1 - lane * kBinsPerLane;
  Count own = 0;
  for (int32_t j = 0; j < kBinsPerLane; ++j) own += bins[top - j];
  Count above = own;
  for (int32_t step = 1; step < kWarpSize; step *= 2) {
    const Count from = __shfl_up_sync(kWholeWarp, above, step);
    if (lane >= step) above += from;
  }
  above -= own;
  if (!(above < wanted && wanted <= above + own)) return;
  int32_t digit = top;
  while (above + bins[digit] < wanted) above += bins[digit--];
  *found = {digit, above, bins[digit]};
}

// Shared memory of one selection.
struct SelectSpace {
  uint32_t bins[kRadixBins];
  Digit<uint32_t> digit;
  uint64_t key;
};

// The k-th largest of key(0) .. key(count - 1), distinct where they are not 0, for 1 <= k <= number
// of keys that are not 0; the same on every thread. A digit that only one key has ends the search:
// three of eight passes, as a rule.
template <class Keys>
__device__ inline uint64_t kth_largest_key(const Block& block, Keys key, int32_t count, int32_t k,
                                           SelectSpace* space) {
  uint64_t known = 0, mask = 0;
  uint32_t wanted = static_cast<uint32_t>(k);
  for (int32_t shift = 64 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    for (int32_t i = block.rank(); i < kRadixBins; i += block.size()) space->bins[i] = 0;
    block.sync();
    for (int32_t i = block.rank(); i < count; i += block.size()) {
      const uint64_t own = key(i);
      if ((own & mask) == known) atomicAdd(&space->bins[own >> shift & (kRadixBins - 1)], 1u);
    }
    block.sync();
    if (block.rank() < kWarpSize) find_digit(space->bins, wanted, &space->digit);
    block.sync();
    const Digit<uint32_t> digit = space->digit;
    known |= static_cast<uint64_t>(digit.value) << shift;
    mask |= static_cast<uint64_t>(kRadixBins - 1) << shift;
    wanted -= digit.above;
    if (digit.inside != 1) continue;
    for (int32_t i = block.rank(); i < count; i += block.size()) {
      const uint64_t own = key(i);
      if ((own & mask) == known) space->key = own;
    }
    block.sync();
    known = space->key;
    break;
  }
  block.sync();
  return known;
}

// The threads of a block, dealt out to `count` keys: as many to each as there are, up to a warp.
struct KeyLanes {
  __device__ KeyLanes(const Block& block, int32_t count) {
    while (lanes < kWarpSize && 2 * lanes * count <= block.size()) lanes *= 2;
    lane = block.rank() % lanes;
    index = block.rank() / lanes;
    keys = block.size() / lanes;
  }
  int32_t lanes = 1;  // threads of a key, side by side in a warp
  int32_t lane;
  int32_t index;  // of the thread's key among those of the block
  int32_t keys;   // of the block at once
};

// Keys in shared memory that are larger than `own`, as far as this lane counts them.
__device__ inline int32_t count_slice(const KeyLanes& lanes, const uint64_t* keys, int32_t count,
                                      uint64_t own) {
  int32_t larger = 0;
  for (int32_t i = lanes.lane; i < count; i += lanes.lanes) larger += keys[i] > own ? 1 : 0;
  return larger;
}

// What the lanes of a key have counted, together; by all lanes of the warp.
__device__ inline int32_t sum_lanes(const KeyLanes& lanes, int32_t counted) {
  for (int32_t step = lanes.lanes / 2; step > 0; step /= 2)
    counted += __shfl_xor_sync(kWholeWarp, counted, step);
  return counted;
}

// Keys in shared memory that are larger than a thread's own, which all its lanes bring.
__device__ inline int32_t count_larger(const KeyLanes& lanes, const uint64_t* keys, int32_t count,
                                       uint64_t own) {
  return sum_lanes(lanes, count_slice(lanes, keys, count, own));
}

// The same of key(0) .. key(count - 1), wherever those are: they are compared tile by tile in
// shared memory, because a key costs a division or a search where it comes from. Every thread of
// the block takes part.
template <class Keys>
__device__ inline int32_t count_larger(const Block& block, const KeyLanes& lanes, Keys key,
                                       int32_t count, uint64_t* tile, int32_t tile_size,
                                       uint64_t own) {
  int32_t larger = 0;
  for (int32_t first = 0; first < count; first += tile_size) {
    const int32_t left = count - first;
    const int32_t here = left < tile_size ? left : tile_size;
    for (int32_t i = block.rank(); i < here; i += block.size()) tile[i] = key(first + i);
    block.sync();
    larger += count_slice(lanes, tile, here, own);
    block.sync();
  }
  return sum_lanes(lanes, larger);
}

}  // namespace sdengine
