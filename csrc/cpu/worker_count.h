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
  explicit WorkerCount(int most) : most_(most), current_(most) {}

  // Of the newest run.
  int current() const { return current_; }

  // For a run that begins now. Twice as many are tried again when some time has passed, and have to
  // lose as much as before to be taken back.
  int next(int64_t now_ns) {
    if (current_ < most_ && now_ns >= retry_at_ns_) {
      current_ = std::min(2 * current_, most_);
      retry_at_ns_ = now_ns + period_ns_;
      wall_ns_ = static_cast<double>(period_ns_) / kPeriodPerLoss;
      lost_ns_ = 0;
    }
    return current_;
  }

  // What a run took, and how much of it workers waited for one that made no progress.
  void observe(int64_t wall_ns, int64_t lost_ns, int64_t now_ns) {
    if (current_ == 1) return;  // nobody to wait for
    const auto wall = static_cast<double>(wall_ns);
    const double kept = 1 - std::min(wall / kMemoryNs, 1 / kMemoryRuns);
    wall_ns_ = wall_ns_ * kept + wall;
    lost_ns_ = lost_ns_ * kept + static_cast<double>(lost_ns);
    if (2 * lost_ns_ <= wall_ns_ + kCreditNs) return;
    current_ = (current_ + 1) / 2;
    period_ns_ = std::min(static_cast<int64_t>(kPeriodPerLoss * lost_ns_), kLongestPeriodNs);
    retry_at_ns_ = now_ns + period_ns_;
    wall_ns_ = lost_ns_ = 0;
  }

 private:
  // How far back losses count: so long, and at least so many runs.
  static constexpr double kMemoryNs = 100e6;
  static constexpr double kMemoryRuns = 8;
  // A few time slices in a row are no crowd yet: a server's own event loop takes as much.
  static constexpr double kCreditNs = 20e6;
  // A trial loses about as much as led to fewer workers: so trials cost a tenth.
  static constexpr double kPeriodPerLoss = 10;
  static constexpr int64_t kLongestPeriodNs = 5'000'000'000;

  const int most_;
  int current_;
  double wall_ns_ = 0;  // of the last runs, older ones less and less
  double lost_ns_ = 0;  // likewise
  int64_t period_ns_ = 0;
  int64_t retry_at_ns_ = 0;
};

}  // namespace sdengine
