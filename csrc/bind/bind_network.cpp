// Networks, updates and random numbers. Shapes, dtypes and values are checked in fastsmc/ops.py; here only
// dtype and layout are held to what the pointers assume.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind/bind.h"
#include "cpu/mlp.h"
#include "cpu/random.h"
#include "cpu/update.h"

namespace py = pybind11;
using namespace fastsmc::cpu;

namespace {

template <class T>
using Rows = py::array_t<T, py::array::c_style>;
using Strided = py::array_t<float, 0>;

constexpr int kLabelOutOfRange = 10;  // the code of its sentence in fastsmc/ops.py

Batch batch_of(const Strided& x) {
  const auto item = static_cast<int64_t>(sizeof(float));
  return {x.shape(0), x.data(), x.strides(0) / item, x.strides(1) / item, nullptr, nullptr};
}

void network_outputs(const std::vector<int64_t>& widths, int activation, const Rows<float>& particles, const Strided& x,
                     Rows<float>& outputs) {
  const MlpSpec spec{static_cast<int>(widths.size()) - 1, widths.data(), static_cast<Activation>(activation),
                     Likelihood::kCategorical, 1.f};
  const Batch batch = batch_of(x);
  const int64_t count = particles.shape(0);
  const float* from = particles.data();
  float* to = outputs.mutable_data();
  py::gil_scoped_release release;
  mlp_outputs(spec, batch, count, from, to);
}

// grad may be None. Returns None, or the status (10, row) of the first label out of range.
py::object log_likelihood(const std::vector<int64_t>& widths, int activation, int likelihood, float noise,
                          const Rows<float>& particles, const Strided& x, const py::array& y,
                          Rows<double>& log_likelihood, const py::object& grad) {
  const MlpSpec spec{static_cast<int>(widths.size()) - 1, widths.data(), static_cast<Activation>(activation),
                     static_cast<Likelihood>(likelihood), noise};
  Batch batch = batch_of(x);
  if (spec.likelihood == Likelihood::kCategorical)
    batch.labels = static_cast<const int64_t*>(y.data());
  else
    batch.targets = static_cast<const float*>(y.data());
  float* gradient = grad.is_none() ? nullptr : grad.cast<Rows<float>>().mutable_data();
  const int64_t count = particles.shape(0);
  const float* from = particles.data();
  double* to = log_likelihood.mutable_data();
  int64_t bad_row;
  {
    py::gil_scoped_release release;
    bad_row = mlp_log_likelihood(spec, batch, count, from, to, gradient);
  }
  if (bad_row < 0) return py::none();
  return py::make_tuple(kLabelOutOfRange, bad_row);
}

// sums [count, 3]: kinetic before, kinetic after, prior energy.
void leapfrog_rows(const Rows<float>& particles, Rows<float>& momentum, const Rows<float>& grad,
                   const Rows<float>& precision, Rows<float>& out, Rows<double>& sums, float kick, float drift,
                   float likelihood_scale, bool refresh, float persistence, uint64_t seed, uint32_t iteration,
                   uint32_t stream, uint32_t first_slot) {
  const UpdatePlan plan{particles.shape(1), kick,   drift,           likelihood_scale, persistence, refresh, seed,
                        iteration,          stream, precision.data()};
  const int64_t count = particles.shape(0);
  const float *position = particles.data(), *gradient = grad.data();
  float *v = momentum.mutable_data(), *moved = out.mutable_data();
  auto* result = reinterpret_cast<UpdateSums*>(sums.mutable_data());
  py::gil_scoped_release release;
  leapfrog(plan, count, first_slot, position, gradient, v, moved, result);
}

template <class T, void (*Fill)(T*, int64_t, int64_t, uint64_t, uint32_t, uint32_t, uint32_t)>
void fill(Rows<T>& out, uint64_t seed, uint32_t iteration, uint32_t stream, uint32_t first_slot) {
  T* data = out.mutable_data();
  const int64_t slots = out.shape(0), dim = out.shape(1);
  py::gil_scoped_release release;
  Fill(data, slots, dim, seed, first_slot, iteration, stream);
}

Rows<float> elementary(int function, const Rows<float>& x) {
  Rows<float> y(x.size());
  kernels().update.elementary(function, x.data(), y.mutable_data(), x.size());
  return y;
}

std::vector<std::string> levels() {
  const char* names[8];
  const int count = available_levels(names, 8);
  return {names, names + count};
}

}  // namespace

void bind_network(py::module_& m) {
  m.def("log_likelihood", log_likelihood, py::arg("widths"), py::arg("activation"), py::arg("likelihood"),
        py::arg("noise"), py::arg("particles").noconvert(), py::arg("x").noconvert(), py::arg("y").noconvert(),
        py::arg("log_likelihood").noconvert(), py::arg("grad"));
  m.def("network_outputs", network_outputs, py::arg("widths"), py::arg("activation"), py::arg("particles").noconvert(),
        py::arg("x").noconvert(), py::arg("outputs").noconvert());
  m.def("leapfrog", leapfrog_rows, py::arg("particles").noconvert(), py::arg("momentum").noconvert(),
        py::arg("grad").noconvert(), py::arg("precision").noconvert(), py::arg("out").noconvert(),
        py::arg("sums").noconvert(), py::arg("kick"), py::arg("drift"), py::arg("likelihood_scale"), py::arg("refresh"),
        py::arg("persistence"), py::arg("seed"), py::arg("iteration"), py::arg("stream"), py::arg("first_slot"));
  const auto fill_with = [&m](const char* name, auto function) {
    m.def(name, function, py::arg("out").noconvert(), py::arg("seed"), py::arg("iteration"), py::arg("stream"),
          py::arg("first_slot"));
  };
  fill_with("philox", fill<uint32_t, philox_integers>);
  fill_with("uniform", fill<double, uniform>);
  fill_with("normal", fill<float, standard_normal>);
  m.def("elementary", elementary, py::arg("function"), py::arg("x").noconvert());
  m.def("simd_level", [] { return kernels().level; });
  m.def("simd_levels", levels);
}
