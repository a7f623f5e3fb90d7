// The parts of the extension modules, one function per family of ops.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "common/resampling.h"

void bind_network(pybind11::module_& m);
void bind_weights(pybind11::module_& m);

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
