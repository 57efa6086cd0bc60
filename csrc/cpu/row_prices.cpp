#include "cpu/row_prices.h"

#include <algorithm>
#include <cmath>

namespace sdengine {
namespace {

// As in kernels/row_prices.py.
constexpr int kLookAhead = 16;
constexpr double kDecline = 0.8;

// Seconds of passes over 1, 2, ... num_rows rows: linear between and beyond measurements.
std::vector<double> pass_seconds(const std::vector<int>& rows, const std::vector<double>& seconds,
                                 int64_t num_rows) {
  std::vector<double> times(num_rows);
  size_t right = rows.size() > 1 ? 1 : 0;
  double slope = 0.0;
  for (int64_t row = 1; row <= num_rows; ++row) {
    while (right + 1 < rows.size() && rows[right] < row) ++right;
    if (right > 0) {
      slope = (seconds[right] - seconds[right - 1]) / (rows[right] - rows[right - 1]);
    }
    times[row - 1] = seconds[right] + slope * static_cast<double>(row - rows[right]);
  }
  return times;
}

}  // namespace

void write_row_prices(const std::vector<int>& rows, const std::vector<double>& seconds,
                      double tokens_per_s, float* prices, int64_t num_prices) {
  const int64_t num_priced = std::min<int64_t>(num_prices, rows.back() + 1);
  const std::vector<double> times = pass_seconds(rows, seconds, num_priced + kLookAhead);
  float price = 0.0f;
  if (num_prices > 0) prices[0] = price;
  for (int64_t row = 1; row < num_priced; ++row) {
    double worth = 0.0, share = 1.0, least = HUGE_VAL;  // of the next 1, 2, ... rows
    for (int64_t next = row; next < row + kLookAhead; ++next, share *= kDecline) {
      worth += share;
      least = std::min(least, (times[next] - times[row - 1]) / worth);
    }
    prices[row] = price = static_cast<float>(least * tokens_per_s);
  }
  for (int64_t row = num_priced; row < num_prices; ++row) prices[row] = price;
}

}  // namespace sdengine
