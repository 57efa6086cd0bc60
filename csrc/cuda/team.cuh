// Several blocks that work on one thing together.
//
// Each block writes what it has to say into its slot, all meet, and each reads all slots: so every
// block knows the same, and goes on with it. Slots come in two sets that are used in turn, so a
// block that is ahead never overwrites what another still reads: it cannot be two meetings ahead.
// Blocks wait for one another, so the launch must keep all of them resident (is_cooperative).
#pragma once

#include "cuda/select_key.cuh"
#include "sdengine/tree_verify.h"

namespace sdengine {

struct TeamSpace {
  uint64_t words[kMaxWarps];
  uint64_t bins[kRadixBins];
  Digit<uint64_t> digit;
};

static_assert(kTeamSlotWords >= kRadixBins, "a slot holds a histogram");

class Team {
 public:
  // The blocks of a team stand in y; a grid has room for 2^31 - 1 teams in x, for 65535 in y.
  // `counter` is 0 when the launch begins; `slots`: 2 kMaxTeam kTeamSlotWords words.
  __device__ Team(const Block& block, TeamSpace* space, uint32_t* counter, uint64_t* slots)
      : block_(block),
        space_(space),
        counter_(counter),
        slots_(slots),
        index_(static_cast<int32_t>(blockIdx.y)),
        size_(static_cast<int32_t>(gridDim.y)) {}

  __device__ const Block& block() const { return block_; }
  __device__ int32_t rank() const { return index_ * block_.size() + block_.rank(); }
  __device__ int32_t num_threads() const { return size_ * block_.size(); }
  __device__ bool is_first_block() const { return index_ == 0; }

  __device__ __noinline__ uint64_t most(uint64_t x) {
    return reduce(x, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }
  __device__ __noinline__ uint64_t sum(uint64_t x) {
    return reduce(x, [](uint64_t a, uint64_t b) { return a + b; });
  }

  // The largest value such that the weights of all values >= it reach `wanted`; weights are
  // integers, so their sums have no order. visit(take) calls take(order_bits(value), weight) for
  // every value of this thread, as often as it is called.
  template <class Visit>
  __device__ uint32_t weighted_quantile(Visit visit, uint64_t wanted) {
    uint32_t known = 0, mask = 0;
    for (int32_t shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
      for (int32_t i = block_.rank(); i < kRadixBins; i += block_.size()) space_->bins[i] = 0;
      block_.sync();
      visit([&](uint32_t bits, uint64_t weight) {
        if ((bits & mask) == known) add_to(bits >> shift & (kRadixBins - 1), weight);
      });
      block_.sync();
      add_bins();
      if (block_.rank() < kWarpSize) find_digit(space_->bins, wanted, &space_->digit);
      block_.sync();
      const Digit<uint64_t> digit = space_->digit;
      known |= static_cast<uint32_t>(digit.value) << shift;
      mask |= static_cast<uint32_t>(kRadixBins - 1) << shift;
      wanted -= digit.above;
    }
    return known;
  }

 private:
  __device__ void add_to(uint32_t bin, uint64_t weight) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&space_->bins[bin]),
              static_cast<unsigned long long>(weight));
  }

  __device__ uint64_t* slot(int32_t index) const {
    return slots_ + (int64_t{round_ % 2} * kMaxTeam + index) * kTeamSlotWords;
  }

  // Every thread of every block has come here; what was written to slots can be read.
  __device__ void meet() {
    block_.sync();
    if (block_.is_leader()) {
      add_release(counter_, 1);
      const uint32_t all = static_cast<uint32_t>((round_ + 1) * size_);
      while (load_acquire(counter_) < all) __nanosleep(32);
    }
    block_.sync();
  }

  template <class Combine>
  __device__ uint64_t reduce(uint64_t x, Combine combine) {
    for (int32_t step = kWarpSize / 2; step > 0; step /= 2)
      x = combine(x, __shfl_xor_sync(kWholeWarp, x, step));
    if (block_.rank() % kWarpSize == 0) space_->words[block_.rank() / kWarpSize] = x;
    block_.sync();
    x = space_->words[0];
    for (int32_t w = 1; w < block_.size() / kWarpSize; ++w) x = combine(x, space_->words[w]);
    if (size_ == 1) {
      block_.sync();
      return x;
    }
    if (block_.is_leader()) *slot(index_) = x;
    meet();
    x = __ldcg(slot(0));
    for (int32_t i = 1; i < size_; ++i) x = combine(x, __ldcg(slot(i)));
    ++round_;
    return x;
  }

  // Replaces the block's histogram by the team's.
  __device__ __noinline__ void add_bins() {
    if (size_ == 1) return;
    for (int32_t i = block_.rank(); i < kRadixBins; i += block_.size())
      slot(index_)[i] = space_->bins[i];
    meet();
    for (int32_t i = block_.rank(); i < kRadixBins; i += block_.size()) {
      uint64_t total = 0;
      for (int32_t other = 0; other < size_; ++other) total += __ldcg(slot(other) + i);
      space_->bins[i] = total;
    }
    ++round_;
    block_.sync();
  }

  Block block_;
  TeamSpace* space_;
  uint32_t* counter_;
  uint64_t* slots_;
  int32_t index_;
  int32_t size_;
  int32_t round_ = 0;
};

}  // namespace sdengine
