// How many workers a run gets: all of them, or fewer while other processes use the cores.
//
// Workers in lockstep are as fast as the slowest. A worker that has lost its core to another
// process holds the others at the next barrier for a time slice of milliseconds, where a barrier of
// a small model comes every ten microseconds: with two workers on two cores one busy process beside
// them cost four fifths of the speed, four busy ones 99%. Half the workers lose half of it at most.
//
// Results do not depend on the number of workers, so it may change from run to run.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sdengine {

class WorkerCount {
 public:
  explicit WorkerCount(int most) : most_(most), current_(most), wall_ns_(kCreditNs) {}

  // Of the newest run.
  int current() const { return current_; }

  // For a run that begins now. Twice as many are tried again when some time has passed.
  int next(int64_t now_ns) {
    if (current_ < most_ && now_ns >= retry_at_ns_) {
      current_ = std::min(2 * current_, most_);
      retry_at_ns_ = now_ns + period_ns_;
      wall_ns_ = lost_ns_ = 0;
    }
    return current_;
  }

  // What a run took, and how much of it workers waited for one that made no progress.
  void observe(int64_t wall_ns, int64_t lost_ns, int64_t now_ns) {
    if (current_ == 1) return;  // nobody to wait for
    wall_ns_ += wall_ns - wall_ns_ / kMemoryRuns;
    lost_ns_ += lost_ns - lost_ns_ / kMemoryRuns;
    if (2 * lost_ns_ <= wall_ns_) return;
    current_ = (current_ + 1) / 2;
    period_ns_ = std::clamp(kPeriodPerLoss * lost_ns_, kShortestPeriodNs, kLongestPeriodNs);
    retry_at_ns_ = now_ns + period_ns_;
    wall_ns_ = lost_ns_ = 0;
  }

 private:
  static constexpr int64_t kMemoryRuns = 16;
  // At the start one loss of a time slice is not taken for a crowd.
  static constexpr int64_t kCreditNs = 10'000'000;
  // A trial loses about as much as led to fewer workers: so trials cost a tenth at most.
  static constexpr int64_t kPeriodPerLoss = 10;
  static constexpr int64_t kShortestPeriodNs = 20'000'000;
  static constexpr int64_t kLongestPeriodNs = 5'000'000'000;

  const int most_;
  int current_;
  int64_t wall_ns_;      // of the last runs, older ones less and less
  int64_t lost_ns_ = 0;  // likewise
  int64_t period_ns_ = 0;
  int64_t retry_at_ns_ = 0;
};

}  // namespace sdengine
