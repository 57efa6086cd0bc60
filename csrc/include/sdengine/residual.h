// Recursive rejection sampling at one node, without residual vectors.
//
// Children are tested in order against the target law p. After the draws y_1 .. y_j (without
// replacement from q) were rejected, what is left of p is the one-parameter family
//
//     r_j(x) = max(0, p(x) - t_j q(x)) / S_j,
//     S_j    = sum_x max(0, p(x) - t_j q(x)),    S_0 = 1,
//     t_j    = t_{j-1} + S_{j-1} / D_{j-1},      t_0 = 0,
//     D_j    = 1 - q(y_1) - .. - q(y_j),
//
// for all x at once: rejected tokens vanish by themselves. q lives on a support of at most 64
// tokens, so a rejection costs one sum over the support. Children that were not drawn but chosen
// (law DELTA) come after the drawn ones: each is accepted with its residual probability and struck
// out on rejection.
//
// Source: recursive rejection sampling without replacement (Sequoia, RSD, DySpec); the scalar form
// is our own.
#pragma once

#include <cstdint>

#include "sdengine/hd.h"

namespace sdengine {

constexpr int kMaxSupport = 64;
constexpr int kMaxStruck = 64;

// A residual lighter than this is reached with a probability of that order: p itself is drawn from
// instead, an error in total variation no larger. A proposal with less mass left has nothing to
// draw: its slot does not exist.
constexpr double kNegligibleMass = 1e-6;

// Target and draft laws of a visited node on the proposal's support, in draw order.
struct NodeLaw {
  const int32_t* tokens;             // [count]
  const float* draft_probs;          // [count]
  double target_probs[kMaxSupport];  // [count]
  double outside;                    // target mass outside the support
  int32_t count;                     // 0: nothing was drawn below this node
};

struct Residual {
  double taken;          // t: multiple of q taken off p
  double mass;           // S
  int32_t num_rejected;  // drawn children rejected so far: the first entries of the support
  int32_t num_struck;
  int32_t struck[kMaxStruck];  // rejected DELTA tokens
  bool is_collapsed;           // p itself is to be drawn from
};

SDE_HD inline double positive_part(double x) { return x > 0.0 ? x : 0.0; }

SDE_HD inline void reset_residual(Residual* residual) {
  residual->taken = 0.0;
  residual->mass = 1.0;
  residual->num_rejected = 0;
  residual->num_struck = 0;
  residual->is_collapsed = false;
}

SDE_HD inline void finish_law(NodeLaw* law) {
  double inside = 0.0;
  for (int32_t i = 0; i < law->count; ++i) inside += law->target_probs[i];
  law->outside = positive_part(1.0 - inside);
}

// q mass of the support from entry `first` on: summed from what is left, so it does not cancel.
SDE_HD inline double remaining_draft_mass(const NodeLaw& law, int32_t first) {
  double mass = 0.0;
  for (int32_t i = law.count - 1; i >= first; --i) mass += law.draft_probs[i];
  return mass;
}

// Index of a token in the support; -1 when q(token) = 0.
SDE_HD inline int32_t support_index(const NodeLaw& law, int32_t token) {
  for (int32_t i = 0; i < law.count; ++i) {
    if (law.tokens[i] == token) return i;
  }
  return -1;
}

SDE_HD inline bool is_struck(const Residual& residual, int32_t token) {
  for (int32_t i = 0; i < residual.num_struck; ++i) {
    if (residual.struck[i] == token) return true;
  }
  return false;
}

// Unnormalised residual of the support's entry i.
SDE_HD inline double support_weight(const NodeLaw& law, const Residual& residual, int32_t i) {
  if (i < residual.num_rejected) return 0.0;
  return positive_part(law.target_probs[i] -
                       residual.taken * static_cast<double>(law.draft_probs[i]));
}

// Tests the next drawn child, entry num_rejected of the support, with a uniform number in (0, 1).
// p(y) >= q(y) at the first draw is accepted for certain. Updates the residual on rejection.
SDE_HD inline bool accepts_drawn(const NodeLaw& law, Residual* residual, double uniform) {
  const int32_t i = residual->num_rejected;
  const double draft_mass = remaining_draft_mass(law, i);
  const double draft_prob = law.draft_probs[i];
  if (uniform * draft_prob * residual->mass < support_weight(law, *residual, i) * draft_mass)
    return true;
  residual->taken += residual->mass / draft_mass;
  residual->num_rejected += 1;
  double mass = law.outside;
  for (int32_t j = residual->num_rejected; j < law.count; ++j)
    mass += support_weight(law, *residual, j);
  residual->mass = mass;
  residual->is_collapsed = mass < kNegligibleMass;
  return false;
}

// Tests a chosen child with residual weight `weight`; strikes it out on rejection.
SDE_HD inline bool accepts_chosen(Residual* residual, int32_t token, double weight,
                                  double uniform) {
  if (uniform * residual->mass < weight) return true;
  residual->struck[residual->num_struck++] = token;
  residual->mass -= weight;
  residual->is_collapsed = residual->mass < kNegligibleMass;
  return false;
}

}  // namespace sdengine
