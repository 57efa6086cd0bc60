// What a node must be worth to become the next row of a target's pass; the contract and the reasons
// are in kernels/row_prices.py.
#pragma once

#include <cstdint>
#include <vector>

namespace sdengine {

// prices[M], M = 0..num_prices-1: tokens that row M + 1 must promise.
//   rows, seconds: a pass as measured, row counts ascending from 1.
//   tokens_per_s: what a second is worth.
void write_row_prices(const std::vector<int>& rows, const std::vector<double>& seconds,
                      double tokens_per_s, float* prices, int64_t num_prices);

}  // namespace sdengine
