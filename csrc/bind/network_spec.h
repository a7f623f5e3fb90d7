// A network as Python's table of its layers tells it.
#pragma once

#include <pybind11/numpy.h>

#include "common/network_check.h"

namespace fastsmc {

template <class T>
using Rows = pybind11::array_t<T, pybind11::array::c_style>;

// layers [layers, fields of Layer]; they are checked, whoever calls.
inline NetworkSpec spec_of(const Rows<int64_t>& layers, int likelihood, float noise, int precision) {
  static_assert(sizeof(Layer) == 9 * sizeof(int64_t), "a row of the table is a Layer");
  const bool aligned = (layers.flags() & pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
  if (!aligned || layers.ndim() != 2 || layers.shape(1) * static_cast<int64_t>(sizeof(int64_t)) != sizeof(Layer))
    throw pybind11::type_error("layers must be [layers, 9], aligned; call the engine through fastsmc.ops");
  const NetworkSpec spec{static_cast<int>(std::min<int64_t>(layers.shape(0), kMaxLayers + 1)),
                         reinterpret_cast<const Layer*>(layers.data()), static_cast<Likelihood>(likelihood), noise,
                         static_cast<Precision>(precision)};
  check_network(spec);
  return spec;
}

}  // namespace fastsmc
