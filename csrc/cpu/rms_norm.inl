#include "cpu/norm_row.h"
#include "cpu/rms_norm.h"
#include "cpu/shares.h"

namespace sdengine {
inline namespace SDENGINE_ISA_NAMESPACE {

void rms_norm_kernel(const RmsNormArgs& args, Worker& worker) {
  const int64_t width = args.hidden_size;
  const Range rows = share_work(worker, *args.num_rows, width);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    norm_row(args.x + r * width, args.weight, args.out + r * width, width, args.eps);
  }
}

}  // namespace SDENGINE_ISA_NAMESPACE
}  // namespace sdengine
