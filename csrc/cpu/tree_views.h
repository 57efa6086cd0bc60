// Tree and row views from lists of tensor addresses, in the field order of the Python dataclasses.
#pragma once

#include <stdexcept>
#include <vector>

#include "cpu/bind.h"
#include "sdengine/token_tree.h"

namespace sdengine {

using Addresses = std::vector<uintptr_t>;

inline void expect_addresses(const Addresses& addresses, size_t count, const char* name) {
  if (addresses.size() != count)
    throw std::invalid_argument(std::string(name) + ": wrong number of addresses");
}

inline DraftTreeView draft_tree_view(const Addresses& a, int32_t capacity) {
  expect_addresses(a, 12, "DraftTree");
  return {pointer<int32_t>(a[0]),
          pointer<int32_t>(a[1]),
          pointer<int32_t>(a[2]),
          pointer<int32_t>(a[3]),
          pointer<float>(a[4]),
          pointer<float>(a[5]),
          pointer<float>(a[6]),
          pointer<float>(a[7]),
          pointer<int32_t>(a[8]),
          pointer<int32_t>(a[9]),
          pointer<int32_t>(a[10]),
          pointer<int32_t>(a[11]),
          capacity};
}

inline TokenTreeView token_tree_view(const Addresses& a, int32_t capacity, int32_t mask_words) {
  expect_addresses(a, 13, "TokenTree");
  return {pointer<int32_t>(a[0]),
          pointer<int32_t>(a[1]),
          pointer<int32_t>(a[2]),
          pointer<int32_t>(a[3]),
          pointer<int32_t>(a[4]),
          pointer<int32_t>(a[5]),
          pointer<int32_t>(a[6]),
          pointer<int32_t>(a[7]),
          pointer<float>(a[8]),
          pointer<float>(a[9]),
          pointer<float>(a[10]),
          pointer<uint64_t>(a[11]),
          pointer<int32_t>(a[12]),
          capacity,
          mask_words};
}

inline RowBatchView row_batch_view(const Addresses& a, int32_t capacity, int32_t mask_words) {
  expect_addresses(a, 10, "RowBatch");
  return {pointer<int32_t>(a[0]),
          pointer<int32_t>(a[1]),
          pointer<int32_t>(a[2]),
          pointer<int32_t>(a[3]),
          pointer<int32_t>(a[4]),
          pointer<int32_t>(a[5]),
          pointer<uint64_t>(a[6]),
          pointer<int32_t>(a[7]),
          pointer<int32_t>(a[8]),
          pointer<int32_t>(a[9]),
          capacity,
          mask_words};
}

}  // namespace sdengine
