// Philox, logarithm, exponential and Gumbel noise, one text for one lane and for vectors of lanes.
//
// Included inside a namespace that has Vec, IntVec, Mask and their functions (scalar_lanes.h, or
// the CPU's vec.h), with SDE_LANE_FN defined. Only operations that IEEE 754 fixes to the bit are
// used, and no fused multiply-add, so every instruction set, the GPU and the torch reference draw
// the same numbers and rank them the same way.

// Philox4x32-10 in place: counter words c[0..3], key (key0, key1).
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
SDE_LANE_FN void philox_rounds(IntVec* c, uint32_t key0, uint32_t key1) {
  const IntVec multiplier0 = broadcast_int(static_cast<int32_t>(0xD2511F53u));
  const IntVec multiplier1 = broadcast_int(static_cast<int32_t>(0xCD9E8D57u));
  for (int round = 0; round < 10; ++round) {
    IntVec high0, low0, high1, low1;
    mul_high_low(c[0], multiplier0, &high0, &low0);
    mul_high_low(c[2], multiplier1, &high1, &low1);
    c[0] = high1 ^ c[1] ^ broadcast_int(static_cast<int32_t>(key0));
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ broadcast_int(static_cast<int32_t>(key1));
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// log((1 + f) * 2^e) for 1 + f in [sqrt(1/2), sqrt(2)); own minimax fit, 6e-9 relative before
// rounding. Summed as a tree: Horner's chain of 14 dependent operations made the pass
// latency-bound.
SDE_LANE_FN Vec log_reduced(Vec f, Vec e) {
  const Vec f2 = f * f;
  const Vec p01 = broadcast(0.3333333134651184f) + broadcast(-0.250008225440979f) * f;
  const Vec p23 = broadcast(0.20001226663589478f) + broadcast(-0.16623356938362122f) * f;
  const Vec p45 = broadcast(0.14201761782169342f) + broadcast(-0.131601944565773f) * f;
  const Vec p67 = broadcast(0.12761549651622772f) + broadcast(-0.07634429633617401f) * f;
  const Vec p = (p01 + p23 * f2) + (p45 + p67 * f2) * (f2 * f2);
  const Vec tail = (f2 * f) * p - broadcast(0.5f) * f2;
  // ln 2 in two parts; the first has 16 bits, so its product with an exponent is exact.
  return e * broadcast(0.693145751953125f) + (f + (tail + e * broadcast(1.42860682e-6f)));
}

// The offset sqrt(1/2) carries into the exponent field exactly where the mantissa is above sqrt(2).
SDE_LANE_FN IntVec log_exponent(Vec x) {
  return shift_right_arithmetic<23>(bits_of(x) - broadcast_int(0x3f3504f3));
}
SDE_LANE_FN Vec log_mantissa(Vec x, IntVec exponent) {
  return from_bits(bits_of(x) - shift_left<23>(exponent));
}

// Natural logarithm of a positive normal number.
SDE_LANE_FN Vec stable_log(Vec x) {
  const IntVec exponent = log_exponent(x);
  return log_reduced(log_mantissa(x, exponent) - broadcast(1.0f), to_float(exponent));
}

// e^x for x <= 88; 0 below -86 (also for -inf). Own minimax fit, 3e-9 relative before rounding.
SDE_LANE_FN Vec stable_exp(Vec x) {
  const Vec magic =
      broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
  const Vec shifted = x * broadcast(1.44269504088896341f) + magic;
  const Vec n = shifted - magic;
  const Vec r = (x - n * broadcast(0.693145751953125f)) - n * broadcast(1.42860682e-6f);
  const Vec r2 = r * r;
  const Vec p01 = broadcast(0.4999999403953552f) + broadcast(0.1666652113199234f) * r;
  const Vec p23 = broadcast(0.04166838899254799f) + broadcast(0.0083687175065279f) * r;
  const Vec p = p01 + (p23 + broadcast(0.0013814596459269524f) * r2) * r2;
  const Vec y = broadcast(1.0f) + (r + r2 * p);
  const Vec scaled = from_bits(bits_of(y) + shift_left<23>(bits_of(shifted)));
  return select(less(x, broadcast(-86.0f)), broadcast(0.0f), scaled);
}

// E = -log(1 - u), u = (r + 1/2) / 2^32 for unsigned r: standard exponential in [2^-33, 22.9],
// accurate at both ends. The half of [0, 1) that r lies in decides whether u or 1 - u is formed
// without rounding.
SDE_LANE_FN Vec exponential_noise(IntVec r) {
  const Mask is_upper = less(r, broadcast_int(0));
  const Vec near = (to_float(r ^ shift_right_arithmetic<31>(r)) + broadcast(0.5f)) *
                   broadcast(2.3283064365386963e-10f);
  const Vec x = select(is_upper, near, broadcast(1.0f) - near);
  const IntVec exponent = log_exponent(x);
  const Vec f =
      select(equal(exponent, broadcast_int(0)), -near, log_mantissa(x, exponent) - broadcast(1.0f));
  return -log_reduced(f, to_float(exponent));
}

// G = -log E in [-3.2, 22.9].
SDE_LANE_FN Vec gumbel_noise(IntVec r) { return -stable_log(exponential_noise(r)); }
