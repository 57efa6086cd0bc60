#include "cpu/bind.h"
#include "cpu/penalize.h"

namespace sdengine {

void bind_penalize(pybind11::module_& module) {
  module.def(
      "penalize",
      [](Program& program, uintptr_t logits, uintptr_t rows, uintptr_t row_seq, uintptr_t row_node,
         uintptr_t parents, uintptr_t tokens, int32_t tree_stride, uintptr_t prompt_counts,
         uintptr_t output_counts, int64_t count_stride, uintptr_t repetition, uintptr_t presence,
         uintptr_t frequency, uintptr_t bias_ids, uintptr_t bias_values, uintptr_t num_bias,
         int32_t max_bias, uintptr_t stop_ids, uintptr_t num_stops, int32_t max_stops,
         uintptr_t min_lens, uintptr_t history_lens, uintptr_t num_rows, int64_t vocab_size) {
        PenalizeArgs args{};
        args.logits = pointer<float>(logits);
        args.rows = pointer<const int32_t>(rows);
        args.row_seq = pointer<const int32_t>(row_seq);
        args.row_node = pointer<const int32_t>(row_node);
        args.parents = pointer<const int32_t>(parents);
        args.tokens = pointer<const int32_t>(tokens);
        args.tree_stride = tree_stride;
        args.prompt_counts = pointer<const int32_t>(prompt_counts);
        args.output_counts = pointer<const int32_t>(output_counts);
        args.count_stride = count_stride;
        args.repetition = pointer<const float>(repetition);
        args.presence = pointer<const float>(presence);
        args.frequency = pointer<const float>(frequency);
        args.bias_ids = pointer<const int32_t>(bias_ids);
        args.bias_values = pointer<const float>(bias_values);
        args.num_bias = pointer<const int32_t>(num_bias);
        args.max_bias = max_bias;
        args.stop_ids = pointer<const int32_t>(stop_ids);
        args.num_stops = pointer<const int32_t>(num_stops);
        args.max_stops = max_stops;
        args.min_lens = pointer<const int32_t>(min_lens);
        args.history_lens = pointer<const int32_t>(history_lens);
        args.num_rows = pointer<const int32_t>(num_rows);
        args.vocab_size = vocab_size;
        program.append(penalize, args);
      });
}

}  // namespace sdengine
