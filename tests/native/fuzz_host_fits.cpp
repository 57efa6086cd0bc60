// What the host fits between two steps: acceptance tables and prices of rows. On buffers of exactly
// their size, with counters that wrap around: rates are shares that never fall with the estimate,
// prices never negative.
#include <algorithm>

#include "cpu/acceptance_fit.h"
#include "cpu/row_prices.h"
#include "fuzz.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Random;
using fuzz::require;

void require_rates(const float* rates) {
  for (int cell = 0; cell < kCalibrationCells; ++cell) {
    require(rates[cell] >= 0.0f && rates[cell] <= 1.0f, "a rate is a share");
    const bool is_first = cell % kCalibrationBins == 0;
    require(is_first || rates[cell] >= rates[cell - 1], "rates never fall");
  }
}

SDENGINE_FUZZ(acceptance_fit, 400) {
  const int slots = random.integer(1, 5);
  const size_t cells = static_cast<size_t>(slots) * kCalibrationCells;
  const int32_t start = random.chance(0.5f) ? INT32_MAX - 40 : 0;
  const Exact<float> tables(cells, -1.0f), rates(kRequestKinds * kCalibrationCells, 0.5f);
  const Exact<int32_t> tried(cells, start), accepted(cells, start), counted(2 * cells, start);
  const Exact<int32_t> kinds(slots);
  const Exact<int64_t> added(2 * kRequestKinds * kCalibrationCells);
  const Exact<double> seen(2 * kRequestKinds * kCalibrationCells);
  const Exact<AcceptanceCurve> curves(kRequestKinds);
  const AcceptanceTables acceptance = {tables.get(), {tried.get(), accepted.get()},
                                       kinds.get(),  counted.get(),
                                       added.get(),  seen.get(),
                                       rates.get(),  curves.get(),
                                       slots,        random.chance(0.5f)};
  for (int refresh = 0; refresh < 4; ++refresh) {
    for (int slot = 0; slot < slots; ++slot) kinds[slot] = random.integer(0, kRequestKinds - 1);
    for (size_t cell = 0; cell < cells; ++cell) {
      if (!random.chance(0.1f)) continue;
      const int32_t more = random.integer(0, 60);
      tried[cell] = static_cast<int32_t>(static_cast<uint32_t>(tried[cell]) + more);
      const uint32_t came_true = random.integer(0, more);
      accepted[cell] = static_cast<int32_t>(static_cast<uint32_t>(accepted[cell]) + came_true);
    }
    refresh_acceptance(acceptance, random.unit());
    for (int slot = 0; slot < slots; ++slot) {
      require_rates(tables.get() + slot * kCalibrationCells);
    }
  }
}

SDENGINE_FUZZ(row_prices, 2000) {
  std::vector<int> rows = {1};
  std::vector<double> seconds = {random.unit()};
  for (int more = random.integer(0, 12); more > 0; --more) {
    rows.push_back(rows.back() + random.integer(1, 20));
    seconds.push_back(seconds.back() + (random.chance(0.5f) ? random.unit() : 0.0));
  }
  const Exact<float> prices(random.integer(1, 300), -1.0f);
  write_row_prices(rows, seconds, 1.0 + random.unit(), prices.get(), prices.size());
  require(prices[0] == 0.0f, "the root is not asked");
  for (size_t row = 0; row < prices.size(); ++row) require(prices[row] >= 0.0f, "a price");
}

}  // namespace
