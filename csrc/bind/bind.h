// The parts of the extension modules, one function per family of ops.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/resampling.h"

void bind_network(pybind11::module_& m);
void bind_weights(pybind11::module_& m);

inline void require(bool condition, const char* what) {
  if (!condition) throw pybind11::type_error(what);
}

// Of a type, its entries one after the other and where that type may be.
template <class T>
bool holds(const pybind11::object& array) {
  if (!pybind11::isinstance<pybind11::array_t<T, pybind11::array::c_style>>(array)) return false;
  const auto flags = pybind11::reinterpret_borrow<pybind11::array>(array).flags();
  return (flags & pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}

template <class T>
void require_shape(const pybind11::array& array, std::initializer_list<int64_t> shape) {
  require(holds<T>(array) && array.ndim() == static_cast<pybind11::ssize_t>(shape.size()) &&
              std::equal(shape.begin(), shape.end(), array.shape()),
          "the engine takes C-contiguous arrays of matching shapes; call it through fastsmc.ops");
}

// Of C-contiguous arrays: one that is written would change another.
inline void require_apart(std::initializer_list<const pybind11::array*> arrays) {
  for (auto a = arrays.begin(); a != arrays.end(); ++a)
    for (auto b = a + 1; b != arrays.end(); ++b) {
      const auto *first = static_cast<const char*>((*a)->data()), *second = static_cast<const char*>((*b)->data());
      require(first + (*a)->nbytes() <= second || second + (*b)->nbytes() <= first,
              "the engine takes outputs that overlap no other array; call it through fastsmc.ops");
    }
}

inline fastsmc::Scheme scheme_of(const std::string& name) {
  int index = 0;
  for (const char* scheme : fastsmc::kSchemes) {
    if (name == scheme) return static_cast<fastsmc::Scheme>(index);
    ++index;
  }
  throw pybind11::value_error("unknown scheme '" + name + "'");
}

inline pybind11::list schemes() {
  pybind11::list names;
  for (const char* scheme : fastsmc::kSchemes) names.append(scheme);
  return names;
}
