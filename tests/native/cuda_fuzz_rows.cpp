// The device's begin_step, gather_pending, build_rows, commit_plan and kv_compact against the
// serial ones.
#include <algorithm>
#include <cstring>

#include "cuda_entry_points.h"
#include "fuzz.h"
#include "tree_buffers.h"

namespace {

using namespace sdengine;
using fuzz::Exact;
using fuzz::Random;
using fuzz::require;

template <class T>
void require_same(const Exact<T>& a, const Exact<T>& b, const char* what) {
  require(std::memcmp(a.get(), b.get(), a.size() * sizeof(T)) == 0, what);
}

template <class T>
Exact<T> copy_of(const Exact<T>& from) {
  Exact<T> copy(from.size());
  std::copy_n(from.get(), from.size(), copy.get());
  return copy;
}

// What begin_step writes, as one array.
constexpr int32_t kBegun = 7;

BeginStepArgs begin_into(BeginStepArgs args, const Exact<int32_t>& out, const Exact<float>& values,
                         int32_t batch) {
  int32_t* at = out.get();
  for (int32_t** array :
       {&args.pending_lens, &args.wants_logits, &args.max_emit, &args.draft_pending_lens,
        &args.draft_wants_logits, &args.node_budgets, &args.depth_limits}) {
    *array = at;
    at += batch;
  }
  args.root_values = values.get();
  return args;
}

SDENGINE_FUZZ(cuda_begin_step, 60) {
  const int32_t batch = random.integer(1, 5), room = 20, stops = random.integer(0, 2);
  Exact<int32_t> live(1, random.integer(0, batch)), depth(1, random.integer(1, 5)),
      node_limit(1, 9), fewest(1, random.chance(0.5f) ? 0 : random.integer(1, batch)),
      balanced(1, random.integer(0, 1));
  Exact<int32_t> scheduled(batch), can_draft(batch), total(batch), groups(batch), first(batch),
      lens(batch), emitted(batch), computed(batch), draft_computed(batch);
  Exact<int32_t> stop_tokens(static_cast<size_t>(batch) * stops, 3),
      history(static_cast<size_t>(batch) * room);
  for (size_t i = 0; i < history.size(); ++i) history[i] = random.integer(0, 9);
  for (int32_t b = 0; b < batch; ++b) {
    scheduled[b] = random.integer(0, 4);
    can_draft[b] = random.integer(0, 1);
    lens[b] = random.integer(1, room);
    total[b] = random.chance(0.8f) ? lens[b] + random.integer(1, 9) : random.integer(1, room);
    groups[b] = random.integer(0, 1);
    if (random.chance(0.4f)) total[b] = random.integer(lens[b], 1 << 30);  // squares fill words
    first[b] = random.integer(0, room);
    emitted[b] = random.integer(0, 5);
    computed[b] = random.integer(0, lens[b] - 1);
    draft_computed[b] = random.integer(0, computed[b]);
  }
  BeginStepArgs args{};
  args.num_seqs = live.get();
  args.min_running = fewest.get();
  args.scheduled_lens = scheduled.get();
  args.can_draft = can_draft.get();
  args.max_total_lens = total.get();
  args.groups = groups.get();
  args.is_balanced = balanced.get();
  args.first_stops = first.get();
  args.stop_tokens = stop_tokens.get();
  args.num_stop_tokens = stops;
  args.depth_limit = depth.get();
  args.node_limit = node_limit.get();
  args.history = history.get();
  args.max_history = room;
  args.history_lens = lens.get();
  args.num_emitted = emitted.get();
  args.computed_lens = computed.get();
  args.draft_computed_lens = random.chance(0.8f) ? draft_computed.get() : nullptr;
  args.max_draft_rows = random.integer(0, 30);
  args.has_trees = random.chance(0.8f);
  const Exact<int32_t> out(static_cast<size_t>(batch) * kBegun, -7), device_out = copy_of(out);
  const Exact<float> values(batch, -7.0f), device_values = copy_of(values);
  begin_sequences(begin_into(args, out, values, batch));
  const BeginStepArgs on_device = begin_into(args, device_out, device_values, batch);
  require(sdengine_cuda_begin_step(&on_device, batch, nullptr) == 0, "begin_step starts");
  require_same(out, device_out, "what begins");
  require_same(values, device_values, "what trees are worth");
}

SDENGINE_FUZZ(cuda_gather_pending, 15) {
  const int32_t batch = random.integer(1, 5), room = random.integer(1, 40);
  Exact<int32_t> history(static_cast<size_t>(batch) * room), computed(batch), lens(batch),
      live(1, random.integer(0, batch));
  for (size_t i = 0; i < history.size(); ++i) history[i] = static_cast<int32_t>(i);
  for (int32_t b = 0; b < batch; ++b) {
    computed[b] = random.integer(0, room - 1);
    lens[b] = random.integer(0, room - computed[b]);
  }
  const int32_t capacity = random.integer(0, 60);
  Exact<int32_t> tokens(capacity, -7), starts(batch + 1, -7);
  const Exact<int32_t> device_tokens = copy_of(tokens), device_starts = copy_of(starts);
  GatherPendingArgs args{history.get(), room,     computed.get(), lens.get(),
                         live.get(),    capacity, tokens.get(),   starts.get()};
  gather_pending_tokens(args);
  args.pending_tokens = device_tokens.get();
  args.cu_pending = device_starts.get();
  require(sdengine_cuda_gather_pending(&args, batch, nullptr) == 0, "gather_pending starts");
  require_same(tokens, device_tokens, "pending tokens");
  require_same(starts, device_starts, "cu_pending");
}

// A random tree in any order that has parents first; build_rows asks for no more.
void plant_tree(Random& random, const TokenTreeView& tree, int32_t num_nodes) {
  *tree.num_nodes = num_nodes;
  std::fill_n(tree.ancestor_mask, (num_nodes + 1) * tree.mask_words, uint64_t{0});
  tree.depths[0] = 0;
  for (int32_t i = 1; i <= num_nodes; ++i) {
    const int32_t parent = random.integer(0, i - 1);
    tree.tokens[i] = random.integer(0, 99);
    tree.parents[i] = parent;
    tree.depths[i] = tree.depths[parent] + 1;
    for (int32_t w = 0; w < tree.mask_words; ++w)
      tree.ancestor_mask[i * tree.mask_words + w] =
          tree.ancestor_mask[parent * tree.mask_words + w];
    tree.ancestor_mask[i * tree.mask_words + (i - 1) / 64] |= uint64_t{1} << ((i - 1) % 64);
  }
}

SDENGINE_FUZZ(cuda_build_rows, 15) {
  const int32_t batch = random.integer(1, 5), nodes = random.integer(0, 70);
  const int32_t block_size = 1 << random.integer(0, 4);
  fuzz::TokenTreeBuffers tree(batch, nodes);
  Exact<int32_t> starts(batch + 1, 0), computed(batch), wants(batch),
      live(1, random.integer(0, batch));
  for (int32_t b = 0; b < batch; ++b) {
    starts[b + 1] = starts[b] + random.integer(0, 40);
    computed[b] = random.integer(0, 20);
    wants[b] = random.integer(0, 2);
    plant_tree(random, tree.view.sequence(b), random.integer(0, nodes));
  }
  const int32_t reach = (20 + 40 + nodes) / block_size + 1,
                capacity = starts[batch] + batch * nodes;
  Exact<int32_t> tokens(starts[batch]), tables(static_cast<size_t>(batch) * reach);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i) + 100;
  for (size_t i = 0; i < tables.size(); ++i) tables[i] = random.integer(0, 999);
  const int32_t words = tree.words + random.integer(0, 1);
  fuzz::RowBatchBuffers rows(batch, capacity, words), device_rows(batch, capacity, words);
  Exact<int32_t> logit_rows(capacity, -7), cu_logits(batch + 1, -7), num_logits(1, -7);
  const Exact<int32_t> device_logit_rows = copy_of(logit_rows), device_cu = copy_of(cu_logits),
                       device_num = copy_of(num_logits);
  BuildRowsArgs args{tokens.get(),        starts.get(),    computed.get(),
                     wants.get(),         live.get(),      {tables.get(), reach, block_size},
                     random.chance(0.8f), tree.view,       rows.view,
                     logit_rows.get(),    cu_logits.get(), num_logits.get()};
  build_row_batch(args);
  args.rows = device_rows.view;
  args.logit_rows = device_logit_rows.get();
  args.cu_logits = device_cu.get();
  args.num_logits = device_num.get();
  require(sdengine_cuda_build_rows(&args, batch, nullptr) == 0, "build_rows starts");
  require_same(rows.ints, device_rows.ints, "rows");
  require_same(rows.masks, device_rows.masks, "row masks");
  require_same(rows.per_seq, device_rows.per_seq, "cu_rows, tree_starts, num_rows");
  require_same(logit_rows, device_logit_rows, "logit rows");
  require_same(cu_logits, device_cu, "cu_logits");
  require_same(num_logits, device_num, "num_logits");
}

// Everything that commit_plan writes, as one array.
struct Books {
  Books(int32_t batch, int32_t depth, int32_t room)
      : ints(static_cast<size_t>(batch) * (8 + 2 * depth + room + 5), 0), b(batch) {
    int32_t* at = ints.get();
    for (int32_t** array : {&emitted, &lens, &computed, &start, &moves, &draft_computed,
                            &draft_start, &draft_moves}) {
      *array = at;
      at += b;
    }
    source = at;
    draft_source = source + int64_t{b} * depth;
    history = draft_source + int64_t{b} * depth;
    counts = history + int64_t{b} * room;
  }
  Exact<int32_t> ints;
  int32_t b;
  int32_t *emitted, *lens, *computed, *start, *moves, *draft_computed, *draft_start, *draft_moves,
      *source, *draft_source, *history, *counts;
};

CommitPlanArgs point_at(CommitPlanArgs args, const Books& books, int32_t depth) {
  args.num_emitted = books.emitted;
  args.history = books.history;
  args.history_lens = books.lens;
  args.computed_lens = books.computed;
  args.target_moves = {books.source, books.start, books.moves, depth};
  args.draft_computed_lens = books.draft_computed;
  args.draft_moves = {books.draft_source, books.draft_start, books.draft_moves, depth};
  args.output_counts = books.counts;
  return args;
}

SDENGINE_FUZZ(cuda_commit_plan, 15) {
  const int32_t batch = random.integer(1, 5), depth = random.integer(1, 6), nodes = 20, room = 40;
  Exact<int32_t> live(1, random.integer(0, batch)), wants(batch), accepted(batch), emit(batch),
      pending(batch), draft_pending(batch);
  Exact<int32_t> path(static_cast<size_t>(batch) * depth), out(batch * (depth + size_t{1})),
      slots(batch * (nodes + size_t{1}), -1);
  Books books(batch, depth, room), device(batch, depth, room);
  for (int32_t b = 0; b < batch; ++b) {
    wants[b] = random.integer(0, 2);
    pending[b] = random.integer(0, 3);
    accepted[b] = wants[b] != 0 && pending[b] > 0 ? random.integer(0, depth) : 0;
    emit[b] = random.integer(0, depth + 2);
    draft_pending[b] = random.integer(0, 3);
    books.computed[b] = random.integer(0, 9);
    books.lens[b] = books.computed[b] + pending[b];
    books.draft_computed[b] = std::max(0, books.lens[b] - draft_pending[b]);
    for (int32_t i = 0; i < depth; ++i) {
      path[b * depth + i] = i ? path[b * depth + i - 1] + random.integer(1, 2) : 1;
      if (random.chance(0.8f)) slots[b * (nodes + 1) + path[b * depth + i]] = i + 1;
    }
    for (int32_t i = 0; i <= depth; ++i)
      out[b * (depth + 1) + i] = random.chance(0.05f) ? -1 : random.integer(0, 4);
  }
  std::copy_n(books.ints.get(), books.ints.size(), device.ints.get());
  CommitPlanArgs args{};
  args.num_seqs = live.get();
  args.wants_logits = wants.get();
  args.pending_lens = pending.get();
  args.num_accepted = accepted.get();
  args.path = path.get();
  args.out_tokens = out.get();
  args.max_depth = depth;
  args.max_emit = emit.get();
  args.max_history = room;
  args.draft_slots = slots.get();
  args.tree_stride = nodes + 1;
  args.draft_pending_lens = draft_pending.get();
  args.vocab_size = 5;
  for (int32_t b = 0; b < live[0]; ++b) commit_sequence(point_at(args, books, depth), b);
  const CommitPlanArgs on_device = point_at(args, device, depth);
  require(sdengine_cuda_commit_plan(&on_device, batch, nullptr) == 0, "commit_plan starts");
  require_same(books.ints, device.ints, "books");
}

// Gathers all sources of a sequence before it writes: what moving in place has to come to.
void compact_by_copy(const KvCompactArgs& args, unsigned char* cache) {
  const int64_t bytes = args.head_dim * args.element_bytes, planes = 2 * args.num_kv_heads;
  const MovePlanView& plan = args.moves;
  for (int64_t b = 0; b < *args.num_seqs; ++b) {
    for (int64_t p = 0; p < args.num_layers * planes; ++p) {
      const int64_t layer = p / planes, plane = p % planes;
      unsigned char* base =
          cache + (layer * args.num_blocks * planes + plane) * args.block_size * bytes;
      std::vector<unsigned char> held(static_cast<size_t>(plan.num_moves[b] * bytes));
      for (int32_t k = 0; k < plan.num_moves[b]; ++k)
        std::memcpy(held.data() + k * bytes,
                    base + plane_row(args, b, plan.source[b * plan.capacity + k]) * bytes,
                    static_cast<size_t>(bytes));
      for (int32_t k = 0; k < plan.num_moves[b]; ++k)
        std::memcpy(base + plane_row(args, b, plan.dst_start[b] + k) * bytes,
                    held.data() + k * bytes, static_cast<size_t>(bytes));
    }
  }
}

SDENGINE_FUZZ(cuda_kv_compact, 40) {
  const int32_t batch = random.integer(1, 3), layers = random.integer(1, 2);
  const int32_t heads = random.integer(1, 2), block_size = 1 << random.integer(0, 3);
  const int32_t head_dim = random.integer(1, 3) * (1 << random.integer(0, 3));
  const int32_t element_bytes = random.chance(0.5f) ? 2 : 4,
                max_moves = random.chance(0.6f) ? random.integer(1, 11) : random.integer(33, 80);
  const int32_t reach = (2 * max_moves + 4) / block_size + 1, blocks = batch * reach;
  Exact<int32_t> tables(blocks), source(static_cast<size_t>(batch) * max_moves), start(batch),
      moves(batch), live(1, random.integer(0, batch));
  for (int32_t i = 0; i < blocks; ++i) tables[i] = blocks - 1 - i;
  for (int32_t b = 0; b < batch; ++b) {
    moves[b] = random.chance(0.3f) ? max_moves : random.integer(0, max_moves);
    start[b] = random.integer(0, 3);
    int32_t at = start[b];
    const int32_t settled = random.chance(0.5f) ? random.integer(0, max_moves) : 0;
    for (int32_t k = 0; k < max_moves; ++k, ++at)
      source[b * max_moves + k] = at += k < settled || random.chance(0.5f) ? 0 : 1;
  }
  const size_t bytes = size_t{2} * layers * blocks * heads * block_size * head_dim * element_bytes;
  Exact<unsigned char> cache(bytes), device_cache(bytes);
  for (size_t i = 0; i < bytes; ++i)
    cache[i] = device_cache[i] = static_cast<unsigned char>(random.bits());
  const MovePlanView plan{source.get(), start.get(), moves.get(), max_moves};
  KvCompactArgs args{device_cache.get(),
                     element_bytes,
                     tables.get(),
                     reach,
                     plan,
                     live.get(),
                     layers,
                     blocks,
                     heads,
                     block_size,
                     head_dim};
  compact_by_copy(args, cache.get());
  require(sdengine_cuda_kv_compact(&args, batch, nullptr) == 0, "kv_compact starts");
  require_same(cache, device_cache, "cache");
}

}  // namespace
