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

  // For a run that begins now. After a pause twice as many are tried again.
  int next(int64_t now_ns) {
    if (current_ < most_ && now_ns >= retry_at_ns_) {
      current_ = std::min(2 * current_, most_);
      retry_at_ns_ = trial_ends_ns_ = now_ns + pause_ns_;
    }
    return current_;
  }

  // What a run took, and how much of it workers waited for one that made no progress.
  void observe(int64_t wall_ns, int64_t lost_ns, int64_t now_ns) {
    if (current_ == 1) return;  // nobody to wait for
    const auto wall = static_cast<double>(wall_ns);
    const double kept = 1 - std::min(wall / kMemoryNs, 1 / kMemoryRuns);
    wall_ns_ = wall_ns_ * kept + wall;
    lost_ns_ = lost_ns_ * kept + std::min(static_cast<double>(lost_ns), wall);
    if (2 * lost_ns_ <= wall_ns_ + kCreditNs) return;
    current_ = (current_ + 1) / 2;
    pauses_per_loss_ =
        now_ns - wall_ns < trial_ends_ns_ ? std::min(2 * pauses_per_loss_, kMostPauses) : 1;
    pause_ns_ = static_cast<int64_t>(std::min(pauses_per_loss_ * lost_ns_, kLongestPauseNs));
    retry_at_ns_ = now_ns + pause_ns_;
    wall_ns_ = lost_ns_ = 0;
  }

 private:
  // How far back losses count: so long, and at least so many runs.
  static constexpr double kMemoryNs = 100e6;
  static constexpr double kMemoryRuns = 8;
  // A few time slices in a row are no crowd yet: a server's own event loop takes as much.
  static constexpr double kCreditNs = 20e6;
  // Fewer workers at first for as long as was lost, for it may be over then; each time that a trial
  // of more ends like that twice as long, so that trials cost little while it goes on.
  static constexpr double kMostPauses = 32;
  static constexpr double kLongestPauseNs = 5e9;

  const int most_;
  int current_;
  double wall_ns_ = 0;  // of the last runs, older ones less and less
  double lost_ns_ = 0;  // likewise
  double pauses_per_loss_ = 1;
  int64_t pause_ns_ = 0;
  int64_t retry_at_ns_ = 0;
  int64_t trial_ends_ns_ = 0;
};

}  // namespace sdengine
