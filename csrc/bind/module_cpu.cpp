#include <exception>
#include <new>

#include "bind/bind.h"

PYBIND11_MODULE(_cpu, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The CPU engine of fastsmc; fastsmc.ops is the door to it.";
  pybind11::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const std::bad_alloc&) {
      pybind11::set_error(PyExc_MemoryError, "there is not enough memory for what the engine keeps during a call");
    }
  });
  bind_network(m);
  bind_weights(m);
}
