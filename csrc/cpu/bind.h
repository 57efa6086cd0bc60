// Shared by the binding files: tensors arrive as addresses (int), so no torch header is needed.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/program.h"

namespace sdengine {

// The tensor's data, or nullptr for address 0 ("not given").
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace sdengine
