#include "cpu/embed.h"

#include <cstring>

namespace sdengine {

void embed(const EmbedArgs& args, Worker& worker) {
  const int64_t width = args.hidden_size;
  const Range rows = worker.share(*args.num_rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    float* out = args.out + r * width;
    const int64_t offset = int64_t{args.tokens[r]} * width;
    switch (args.format) {
      case Format::kFloat32:
        std::memcpy(out, static_cast<const float*>(args.weight) + offset, width * sizeof(float));
        break;
      case Format::kBfloat16: {
        const uint16_t* row = static_cast<const uint16_t*>(args.weight) + offset;
        for (int64_t i = 0; i < width; ++i) out[i] = bf16_to_float(row[i]);
        break;
      }
      case Format::kFloat16: {
        const Half* row = static_cast<const Half*>(args.weight) + offset;
        for (int64_t i = 0; i < width; ++i) out[i] = half_to_float(row[i]);
        break;
      }
    }
  }
}

}  // namespace sdengine
