// Acceptance tables refitted to what the verifier has counted, between two steps on the host; the
// contract, the model and the reasons are in kernels/acceptance_fit.py.
#pragma once

#include <cstdint>

#include "sdengine/calibration.h"

namespace sdengine {

constexpr int kRequestKinds = 2;  // greedy, sampled

// offset and log_slope of logit(rate) = offset + exp(log_slope) * logit(estimate).
struct AcceptanceCurve {
  double offset;
  double log_slope;
};

// The arrays of an AcceptanceTables of kernels/acceptance_fit.py; B slots, cells [8, 32].
struct AcceptanceTables {
  float* tables;             // [B, cells]
  const int32_t* counts[2];  // tried, accepted: [B, cells], by the verifier, wrapping around
  const int32_t* kinds;      // [B]
  int32_t* counted;          // [2, B, cells], of both as last collected
  int64_t* added;            // [kinds, 2, cells], since the last refresh
  double* seen;              // [kinds, 2, cells]
  float* rates;              // [kinds, cells]
  AcceptanceCurve* curves;   // [kinds]
  int num_slots;
  bool by_rank;
};

// Collects what was counted, forgets all but a share `kept` of what was seen before, fits and
// writes every slot's table.
void refresh_acceptance(const AcceptanceTables& acceptance, double kept);

}  // namespace sdengine
