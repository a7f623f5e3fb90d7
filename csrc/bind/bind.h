// The parts of the extension module, one function per family of ops.
#pragma once

#include <pybind11/pybind11.h>

void bind_network(pybind11::module_& m);
void bind_weights(pybind11::module_& m);
