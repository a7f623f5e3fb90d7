#include "bind/bind.h"

PYBIND11_MODULE(_cpu, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The CPU engine of fastsmc; fastsmc.ops is the door to it.";
  bind_network(m);
  bind_weights(m);
}
