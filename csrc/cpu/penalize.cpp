#include "cpu/penalize.h"

#include <limits>
#include <vector>

#include "cpu/vocab_passes.h"

namespace sdengine {
namespace {

constexpr int64_t kMinSlice = 4096;  // tokens; a smaller slice is not worth another worker

// A token of the row's own path: drafted after the history, so not in the tables yet.
struct PathToken {
  int32_t token;
  int32_t count;
  float raw;
};

struct Row {
  float* logits;
  int32_t seq;
  int32_t node;  // 0: the root or a chain row
};

Row row_of(const PenalizeArgs& args, int64_t r) {
  const int32_t packed = args.rows == nullptr ? static_cast<int32_t>(r) : args.rows[r];
  const bool has_node = args.row_node != nullptr && args.parents != nullptr;
  return {args.logits + r * args.vocab_size, args.row_seq[packed],
          has_node ? args.row_node[packed] : 0};
}

bool contains(Range slice, int32_t token) { return token >= slice.begin && token < slice.end; }

// Tokens from the row's node up to below the root that lie in the slice; returns the node's depth.
int32_t collect_path(const PenalizeArgs& args, const Row& row, Range slice,
                     std::vector<PathToken>* path) {
  path->clear();
  int32_t depth = 0;
  const int64_t tree = int64_t{row.seq} * args.tree_stride;
  for (int32_t node = row.node; node > 0; node = args.parents[tree + node], ++depth) {
    const int32_t token = args.tokens[tree + node];
    if (!contains(slice, token)) continue;
    size_t i = 0;
    while (i < path->size() && (*path)[i].token != token) ++i;
    if (i == path->size()) path->push_back({token, 0, row.logits[token]});
    (*path)[i].count += 1;
  }
  return depth;
}

void apply_penalties(const PenalizeArgs& args, const Row& row, Range slice,
                     const std::vector<PathToken>& path) {
  const Penalties penalties = {args.repetition[row.seq], args.presence[row.seq],
                               args.frequency[row.seq]};
  if (is_neutral(penalties)) return;
  const int32_t* prompt = args.prompt_counts + row.seq * args.count_stride;
  const int32_t* output = args.output_counts + row.seq * args.count_stride;
  vocab_passes().penalize(row.logits, prompt, output, slice.begin, slice.end, penalties);
  for (const PathToken& seen : path) {
    row.logits[seen.token] =
        penalized(seen.raw, penalties, prompt[seen.token], output[seen.token] + seen.count);
  }
}

void apply_bias(const PenalizeArgs& args, const Row& row, Range slice) {
  const int64_t first = int64_t{row.seq} * args.max_bias;
  for (int32_t i = 0; i < args.num_bias[row.seq]; ++i) {
    const int32_t token = args.bias_ids[first + i];
    if (contains(slice, token)) row.logits[token] += args.bias_values[first + i];
  }
}

void ban_stops(const PenalizeArgs& args, const Row& row, Range slice, int32_t depth) {
  if (args.history_lens[row.seq] + depth >= args.min_lens[row.seq]) return;
  const int64_t first = int64_t{row.seq} * args.max_stops;
  for (int32_t i = 0; i < args.num_stops[row.seq]; ++i) {
    const int32_t token = args.stop_ids[first + i];
    if (contains(slice, token)) row.logits[token] = -std::numeric_limits<float>::infinity();
  }
}

void penalize_slice(const PenalizeArgs& args, int64_t r, Range slice) {
  thread_local std::vector<PathToken> path;
  const Row row = row_of(args, r);
  const int32_t depth = collect_path(args, row, slice, &path);
  apply_penalties(args, row, slice, path);
  apply_bias(args, row, slice);
  ban_stops(args, row, slice, depth);
}

}  // namespace

void penalize(const PenalizeArgs& args, Worker& worker) {
  const int64_t num_rows = *args.num_rows;
  if (num_rows == 0) return;
  const int64_t wanted = (worker.count + num_rows - 1) / num_rows;
  const int64_t num_slices = std::max<int64_t>(1, std::min(wanted, args.vocab_size / kMinSlice));
  const int64_t width = (args.vocab_size + num_slices - 1) / num_slices;
  const Range units = worker.share(num_rows * num_slices);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t begin = unit % num_slices * width;
    penalize_slice(args, unit / num_slices, {begin, std::min(begin + width, args.vocab_size)});
  }
}

}  // namespace sdengine
