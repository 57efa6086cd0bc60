// The ops whose arguments are a struct of csrc/include/sdengine, shared with CUDA: Python lays the
// struct out (kernels/launches) and hands it over whole.
#include <cstring>

#include "cpu/begin_step.h"
#include "cpu/bind.h"
#include "cpu/build_rows.h"
#include "cpu/commit_plan.h"
#include "cpu/gather_pending.h"
#include "cpu/kv_compact.h"
#include "cpu/ngram_match.h"
#include "cpu/timestamp.h"
#include "cpu/tree_expand.h"
#include "cpu/tree_select.h"
#include "cpu/tree_verify.h"

namespace sdengine {
namespace {

struct StructOp {
  const char* name;
  size_t size;  // of its arguments
  void (*append)(Program& program, const void* arguments);
};

template <class Args>
void leave_as_is(Args&) {}

// An op, and what is left to fill in of its arguments for the CPU.
template <class Args, void (*kernel)(const Args&, Worker&), void (*complete)(Args&) = leave_as_is>
constexpr StructOp struct_op(const char* name) {
  return {name, sizeof(Args), [](Program& program, const void* bytes) {
            Args args;
            std::memcpy(&args, bytes, sizeof(Args));
            complete(args);
            program.append(kernel, args);
          }};
}

constexpr StructOp kStructOps[] = {
    struct_op<BeginStepArgs, begin_step>("begin_step"),
    struct_op<BuildRowsArgs, build_rows>("build_rows"),
    struct_op<CommitPlanArgs, commit_plan>("commit_plan"),
    struct_op<GatherPendingArgs, gather_pending>("gather_pending"),
    struct_op<KvCompactArgs, kv_compact>("kv_compact"),
    struct_op<NgramMatchArgs, ngram_match>("ngram_match"),
    struct_op<TimestampArgs, timestamp>("timestamp"),
    struct_op<TreeExpandArgs, tree_expand, place_expand_scratch>("tree_expand"),
    struct_op<TreeSelectArgs, tree_select, place_select_scratch>("tree_select"),
    struct_op<TreeVerifyArgs, tree_verify>("tree_verify"),
};

const StructOp* find_struct_op(const std::string& name) {
  for (const StructOp& op : kStructOps) {
    if (name == op.name) return &op;
  }
  return nullptr;
}

void append_struct(Program& program, const std::string& name, const std::string& arguments) {
  const StructOp* op = find_struct_op(name);
  if (op == nullptr || arguments.size() != op->size) {
    throw std::invalid_argument(name + ": not a struct that this extension knows");
  }
  op->append(program, arguments.data());
}

int64_t struct_size(const std::string& name) {
  const StructOp* op = find_struct_op(name);
  return op == nullptr ? -1 : static_cast<int64_t>(op->size);
}

}  // namespace

void bind_struct_ops(pybind11::module_& module) {
  module.def("append_struct", [](Program& program, const std::string& op, pybind11::bytes args) {
    append_struct(program, op, args);
  });
  module.def("struct_size", &struct_size);
}

}  // namespace sdengine
