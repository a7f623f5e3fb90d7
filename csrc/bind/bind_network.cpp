// Networks, updates and random numbers. Values are checked in fastsmc/ops, which has the sentences; here types, layouts
// and shapes are held to what the pointers assume.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind/bind.h"
#include "bind/network_spec.h"
#include "common/fault.h"
#include "common/plain_floats.h"
#include "cpu/network.h"
#include "cpu/parallel.h"
#include "cpu/random.h"
#include "cpu/update.h"

namespace py = pybind11;
using namespace fastsmc;
using namespace fastsmc::cpu;

namespace {

using Strided = py::array_t<float, 0>;

// How the engine is called.
struct Outside {
  py::gil_scoped_release release;
  PlainFloats plain;
};

constexpr int64_t kSums = sizeof(UpdateSums) / sizeof(double);

// Of an array that may be None; the caller keeps the array.
template <class T = float>
T* data_or_null(const py::object& object, std::initializer_list<int64_t> shape, bool written = false) {
  if (object.is_none()) return nullptr;
  require(py::isinstance<py::array>(object), "the engine takes NumPy arrays or None; call it through fastsmc.ops");
  auto array = py::reinterpret_borrow<py::array>(object);
  require_shape<T>(array, shape);
  return static_cast<T*>(written ? array.mutable_data() : const_cast<void*>(array.data()));
}

// How many rows particles have, which are those of a network.
int64_t count_of(const NetworkSpec& spec, const Rows<float>& particles) {
  const int64_t count = particles.ndim() == 2 ? particles.shape(0) : 0;
  require(count > 0, "the engine takes particles [P, d] with P >= 1; call it through fastsmc.ops");
  require_shape<float>(particles, {count, spec.num_params()});
  return count;
}

Batch batch_of(const NetworkSpec& spec, const Strided& x, const py::object& y, const py::object& weights) {
  const auto item = static_cast<int64_t>(sizeof(float));
  require(x.ndim() == 2 && x.shape(0) > 0 && x.shape(1) == spec.inputs() && x.strides(0) % item == 0 &&
              x.strides(1) % item == 0 && (x.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0,
          "the engine takes x [B, inputs] with B >= 1; call it through fastsmc.ops");
  const int64_t samples = checked_product({x.shape(0), 1});
  Batch batch{
      samples, x.data(), x.strides(0) / item, x.strides(1) / item, nullptr, nullptr, data_or_null(weights, {samples})};
  if (spec.likelihood == Likelihood::kCategorical)
    batch.labels = data_or_null<int64_t>(y, {samples});
  else
    batch.targets = data_or_null(y, {samples, spec.outputs()});
  return batch;
}

// None, or the status of the first label out of range.
py::object label_status(int64_t bad_row) {
  if (bad_row < 0) return py::none();
  return py::make_tuple(static_cast<int>(Fault::kLabel), bad_row);
}

void outputs_of(const Rows<int64_t>& layers, int precision, const Rows<float>& particles, const Strided& x,
                Rows<float>& outputs) {
  const NetworkSpec spec = spec_of(layers, 0, 1.f, precision);
  const Batch batch = batch_of(spec, x, py::none(), py::none());
  const int64_t count = count_of(spec, particles);
  require_shape<float>(outputs, {count, batch.samples, spec.outputs()});
  const float* from = particles.data();
  float* to = outputs.mutable_data();
  const Outside outside;
  network_outputs(spec, batch, count, from, to);
}

// weights and grad may be None.
py::object log_likelihood(const Rows<int64_t>& layers, int likelihood, float noise, int precision,
                          const Rows<float>& particles, const Strided& x, const py::object& y,
                          const py::object& weights, Rows<double>& log_likelihood, const py::object& grad) {
  const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
  const Batch batch = batch_of(spec, x, y, weights);
  require(batch.has_targets(), "the engine takes y; call it through fastsmc.ops");
  const int64_t count = count_of(spec, particles);
  require_shape<double>(log_likelihood, {count});
  float* gradient = data_or_null(grad, {count, spec.num_params()}, true);
  const float* from = particles.data();
  double* to = log_likelihood.mutable_data();
  int64_t bad_row;
  {
    const Outside outside;
    bad_row = network_log_likelihood(spec, batch, count, from, to, gradient);
  }
  return label_status(bad_row);
}

// particles, momentum and grad are overwritten, weights and scale may be None; start and end are sums as leapfrog_rows
// returns them.
py::object trajectory_of(const Rows<int64_t>& layers, int likelihood, float noise, int precision,
                         Rows<float>& particles, Rows<float>& momentum, Rows<float>& grad, const Strided& x,
                         const py::object& y, const py::object& weights, const Rows<float>& prior_precision,
                         const py::object& scale, Rows<double>& log_likelihood, Rows<double>& start, Rows<double>& end,
                         float step_size, int64_t steps, float likelihood_scale, bool refresh, float persistence,
                         uint64_t seed, uint32_t iteration, uint32_t stream, uint32_t first_slot) {
  const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
  const Batch batch = batch_of(spec, x, y, weights);
  require(batch.has_targets(), "the engine takes y; call it through fastsmc.ops");
  const int64_t count = count_of(spec, particles), dim = spec.num_params();
  for (const Rows<float>* rows : {&momentum, &grad}) require_shape<float>(*rows, {count, dim});
  require_shape<float>(prior_precision, {dim});
  require_shape<double>(log_likelihood, {count});
  for (const Rows<double>* sums : {&start, &end}) require_shape<double>(*sums, {count, kSums});
  const UpdatePlan plan{dim,
                        0.f,
                        0.f,
                        likelihood_scale,
                        persistence,
                        refresh,
                        seed,
                        iteration,
                        stream,
                        prior_precision.data(),
                        data_or_null(scale, {dim}),
                        nullptr};
  const Phase phase{count,
                    first_slot,
                    particles.mutable_data(),
                    momentum.mutable_data(),
                    grad.mutable_data(),
                    log_likelihood.mutable_data(),
                    reinterpret_cast<UpdateSums*>(start.mutable_data()),
                    reinterpret_cast<UpdateSums*>(end.mutable_data())};
  int64_t bad_row;
  {
    const Outside outside;
    bad_row = trajectory(spec, batch, plan, step_size, steps, phase);
  }
  return label_status(bad_row);
}

int precision_in_use(const Rows<int64_t>& layers, int precision) {
  return static_cast<int>(network_kernels(spec_of(layers, 0, 1.f, precision)).precision);
}

// sums [count, 3]: kinetic before, kinetic after, prior energy. scale and noise may be None.
void leapfrog_rows(const Rows<float>& particles, Rows<float>& momentum, const Rows<float>& grad,
                   const Rows<float>& precision, const py::object& scale, const py::object& noise, Rows<float>& out,
                   Rows<double>& sums, float kick, float drift, float likelihood_scale, bool refresh, float persistence,
                   uint64_t seed, uint32_t iteration, uint32_t stream, uint32_t first_slot) {
  require(particles.ndim() == 2, "the engine takes particles [P, d]; call it through fastsmc.ops");
  const int64_t count = particles.shape(0), dim = particles.shape(1);
  for (const Rows<float>* rows :
       {&particles, static_cast<const Rows<float>*>(&momentum), &grad, static_cast<const Rows<float>*>(&out)})
    require_shape<float>(*rows, {count, dim});
  require_shape<float>(precision, {dim});
  require_shape<double>(sums, {count, kSums});
  const UpdatePlan plan{dim,
                        kick,
                        drift,
                        likelihood_scale,
                        persistence,
                        refresh,
                        seed,
                        iteration,
                        stream,
                        precision.data(),
                        data_or_null(scale, {dim}),
                        data_or_null(noise, {dim})};
  const float *position = particles.data(), *gradient = grad.data();
  float *v = momentum.mutable_data(), *moved = out.mutable_data();
  auto* result = reinterpret_cast<UpdateSums*>(sums.mutable_data());
  const Outside outside;
  leapfrog(plan, count, first_slot, position, gradient, v, moved, result);
}

template <class T, void (*Fill)(T*, int64_t, int64_t, uint64_t, uint32_t, uint32_t, uint32_t)>
void fill(Rows<T>& out, uint64_t seed, uint32_t iteration, uint32_t stream, uint32_t first_slot) {
  require(out.ndim() == 2 && holds<T>(out), "the engine fills arrays [slots, numbers]; call it through fastsmc.random");
  T* data = out.mutable_data();
  const int64_t slots = out.size() == 0 ? 0 : out.shape(0), dim = out.shape(1);
  const Outside outside;
  Fill(data, slots, dim, seed, first_slot, iteration, stream);
}

Rows<float> elementary_of(int function, const Rows<float>& x) {
  require(holds<float>(x), "the engine takes C-contiguous arrays");
  Rows<float> y(x.size());
  const PlainFloats plain;
  kernels().update.elementary(function, x.data(), y.mutable_data(), x.size());
  return y;
}

// On all threads at once.
double multiply_adds(int64_t rounds, int precision) {
  require(precision >= 0 && precision < kPrecisions, "the engine takes a precision of 0, 1 or 2");
  const auto of_one = kernels().network[precision]->multiply_adds;
  double operations = 0;
  const Outside outside;
  on_threads(available_threads(), [&] {
    const double made = of_one(rounds);
#pragma omp atomic
    operations += made;
  });
  return operations;
}

std::vector<std::string> levels() {
  const char* names[8];
  const int count = available_levels(names, 8);
  return {names, names + count};
}

}  // namespace

void bind_network(py::module_& m) {
  m.def("log_likelihood", log_likelihood, py::arg("layers").noconvert(), py::arg("likelihood"), py::arg("noise"),
        py::arg("precision"), py::arg("particles").noconvert(), py::arg("x").noconvert(), py::arg("y"),
        py::arg("weights"), py::arg("log_likelihood").noconvert(), py::arg("grad"));
  m.def("network_outputs", outputs_of, py::arg("layers").noconvert(), py::arg("precision"),
        py::arg("particles").noconvert(), py::arg("x").noconvert(), py::arg("outputs").noconvert());
  m.def("trajectory", trajectory_of, py::arg("layers").noconvert(), py::arg("likelihood"), py::arg("noise"),
        py::arg("precision"), py::arg("particles").noconvert(), py::arg("momentum").noconvert(),
        py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("y"), py::arg("weights"),
        py::arg("prior_precision").noconvert(), py::arg("scale"), py::arg("log_likelihood").noconvert(),
        py::arg("start").noconvert(), py::arg("end").noconvert(), py::arg("step_size"), py::arg("steps"),
        py::arg("likelihood_scale"), py::arg("refresh"), py::arg("persistence"), py::arg("seed"), py::arg("iteration"),
        py::arg("stream"), py::arg("first_slot"));
  m.def("precision_in_use", precision_in_use, py::arg("layers").noconvert(), py::arg("precision"));
  m.def("leapfrog", leapfrog_rows, py::arg("particles").noconvert(), py::arg("momentum").noconvert(),
        py::arg("grad").noconvert(), py::arg("precision").noconvert(), py::arg("scale"), py::arg("noise"),
        py::arg("out").noconvert(), py::arg("sums").noconvert(), py::arg("kick"), py::arg("drift"),
        py::arg("likelihood_scale"), py::arg("refresh"), py::arg("persistence"), py::arg("seed"), py::arg("iteration"),
        py::arg("stream"), py::arg("first_slot"));
  const auto fill_with = [&m](const char* name, auto function) {
    m.def(name, function, py::arg("out").noconvert(), py::arg("seed"), py::arg("iteration"), py::arg("stream"),
          py::arg("first_slot"));
  };
  fill_with("philox", fill<uint32_t, philox_integers>);
  fill_with("uniform", fill<double, uniform>);
  fill_with("normal", fill<float, standard_normal>);
  m.def("elementary", elementary_of, py::arg("function"), py::arg("x").noconvert());
  m.def("multiply_adds", multiply_adds, py::arg("rounds"), py::arg("precision") = 0);
  m.def("simd_level", [] { return kernels().level; });
  m.def("simd_levels", levels);
}
