// Division of the work: (tile, kv head) is a unit; its splits, in order, are the items. Every
// worker takes a contiguous range of all items. A unit that lies inside one range is merged on the
// fly; a unit cut by a border stores its splits and is merged after a barrier, in the same order,
// hence with the same bits.
#include <new>
#include <type_traits>

#include "cpu/attention_values.h"
#include "cpu/thread_memory.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {
namespace {

constexpr int64_t kPartialHeader = 16;  // floats before each saved accumulator: max, sum, alignment

// A worker more must have at least this many multiply-adds, about half a microsecond, to be worth
// its wake-up.
constexpr int64_t kOperationsPerWorker = 25000;

template <class Visit>
void for_each_tile(const TreeAttentionArgs& args, Visit visit) {
  const int64_t rows_per_tile = larger(1, kMaxQueries / (args.num_heads / args.num_kv_heads));
  const int64_t num_rows = *args.num_rows;
  for (int64_t b = 0; args.cu_rows[b] < num_rows; ++b) {
    const int64_t end = args.cu_rows[b + 1];
    for (int64_t row = args.cu_rows[b]; row < end; row += rows_per_tile) {
      TileSpan span{b, row, smaller(rows_per_tile, end - row), 0, 0};
      int64_t first = 0, last = 0;
      bool is_empty = true;
      for (int64_t r = row; r < row + span.num_rows; ++r) {
        const RowView view = view_row(args, r);
        if (view.is_empty()) continue;
        first = is_empty ? view.begin() : smaller(first, view.begin());
        last = larger(last, view.end());
        is_empty = false;
      }
      span.first_split = first / kSplit;
      // A tile that sees nothing still has its zeros to write: one split.
      span.last_split = larger(span.first_split + 1, (last + kSplit - 1) / kSplit);
      visit(span);
    }
  }
}

struct Division {
  int64_t num_items;
  int64_t num_workers;

  int64_t begin(int64_t worker) const { return num_items * worker / num_workers; }
  // True when a border between two workers lies inside items [first, last).
  bool cuts(int64_t first, int64_t last) const {
    for (int64_t w = 1; w < num_workers; ++w) {
      if (begin(w) > first && begin(w) < last) return true;
    }
    return false;
  }
};

int64_t partial_floats(const TreeAttentionArgs& args) {
  return padded(args.head_dim) + kPartialHeader;
}

Division divide(const TreeAttentionArgs& args, int64_t available) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  int64_t items = 0, operations = 0, largest_unit = 1;
  for_each_tile(args, [&](const TileSpan& span) {
    const int64_t queries = span.num_rows * group;
    items += span.num_splits() * args.num_kv_heads;
    // Transposing a key costs about as much as four queries.
    operations += span.num_splits() * args.num_kv_heads * kSplit * args.head_dim * (queries + 4);
    largest_unit = larger(largest_unit, span.num_splits() * queries * partial_floats(args));
  });
  int64_t workers = smaller(available, operations / kOperationsPerWorker);
  workers = smaller(workers, items);
  workers = smaller(workers,
                    1 + args.scratch_floats / largest_unit);  // each border cuts one unit at most
  return {items, larger(workers, 1)};
}

// Calls visit(span, kv_head, first item, offset in scratch or -1) for every unit.
template <class Visit>
void for_each_unit(const TreeAttentionArgs& args, const Division& division, Visit visit) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  int64_t item = 0, offset = 0;
  for_each_tile(args, [&](const TileSpan& span) {
    for (int64_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head) {
      const bool is_cut = division.cuts(item, item + span.num_splits());
      visit(span, kv_head, item, is_cut ? offset : -1);
      item += span.num_splits();
      if (is_cut) offset += span.num_splits() * span.num_rows * group * partial_floats(args);
    }
  });
}

template <class T>
void run_items(const TreeAttentionArgs& args, const Division& division, int64_t worker) {
  const int64_t begin = division.begin(worker), end = division.begin(worker + 1);
  static_assert(std::is_trivially_destructible_v<Tile<T>>, "nobody ends a tile");
  Tile<T>& tile = *new (thread_memory(sizeof(Tile<T>))) Tile<T>(args);
  for_each_unit(
      args, division, [&](const TileSpan& span, int64_t kv_head, int64_t item, int64_t offset) {
        const int64_t first = larger(begin, item), last = smaller(end, item + span.num_splits());
        if (first >= last) return;
        tile.start(span, kv_head);
        for (int64_t i = first; i < last; ++i) {
          tile.run_split(span.first_split + i - item);
          if (offset < 0) {
            tile.merge_split();
          } else {
            tile.save_split(args.scratch + offset +
                            (i - item) * tile.num_queries() * partial_floats(args));
          }
        }
        if (offset < 0) tile.write_results();
      });
}

void run_share(const TreeAttentionArgs& args, const Division& division, int64_t worker) {
  switch (args.cache_format) {
    case Format::kFloat32:
      return run_items<float>(args, division, worker);
    case Format::kBfloat16:
      return run_items<uint16_t>(args, division, worker);
    case Format::kFloat16:
      return run_items<Half>(args, division, worker);
  }
}

// Merges the saved splits of units that several workers shared, query by query.
void merge_units(const TreeAttentionArgs& args, const Division& division, int64_t worker) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t width = padded(args.head_dim);
  int64_t turn = 0;
  for_each_unit(
      args, division, [&](const TileSpan& span, int64_t kv_head, int64_t, int64_t offset) {
        if (offset < 0) return;
        const int64_t queries = span.num_rows * group;
        for (int64_t q = 0; q < queries; ++q) {
          if (turn++ % division.num_workers != worker) continue;
          alignas(64) float acc[kMaxHeadDim];
          Softmax state{0.0f, 0.0f};
          for (int64_t s = 0; s < span.num_splits(); ++s) {
            const float* saved = args.scratch + offset + (s * queries + q) * partial_floats(args);
            merge(&state, acc, {saved[0], saved[1]}, saved + kPartialHeader, width);
          }
          write_head(args, span.first_row + q / group, kv_head * group + q % group, state, acc);
        }
      });
}

}  // namespace

void tree_attention_kernel(const TreeAttentionArgs& args, Worker& worker) {
  const Division division = divide(args, worker.count);
  if (worker.index < division.num_workers) {
    run_share(args, division, worker.index);
  }
  bool has_cut_units = false;
  if (division.num_workers > 1) {
    for_each_unit(args, division, [&](const TileSpan&, int64_t, int64_t, int64_t offset) {
      has_cut_units = has_cut_units || offset >= 0;
    });
  }
  if (!has_cut_units) return;
  worker.barrier();
  if (worker.index < division.num_workers) merge_units(args, division, worker.index);
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
