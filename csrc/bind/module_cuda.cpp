// The ops of the CUDA engine. Shapes and values are the business of fastsmc/ops and of the ops themselves;
// fastsmc/cuda.py turns tensors into the pointers and sizes that are taken here.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bind/bind.h"
#include "bind/network_spec.h"
#include "cuda/ops.h"

namespace py = pybind11;
using namespace fastsmc;
using namespace fastsmc::cuda;

namespace {

// Memory that a tensor keeps, as its data_ptr says; null for None.
template <class T = void>
struct Pointer {
  T* address;
  operator T*() const { return address; }
};

}  // namespace

namespace pybind11::detail {

template <class T>
struct type_caster<Pointer<T>> {
  PYBIND11_TYPE_CASTER(Pointer<T>, const_name("int | None"));
  bool load(handle source, bool) {
    if (source.is_none()) {
      value.address = nullptr;
      return true;
    }
    if (!PyLong_Check(source.ptr())) return false;
    value.address = reinterpret_cast<T*>(PyLong_AsUnsignedLongLong(source.ptr()));
    return PyErr_Occurred() == nullptr;
  }
};

}  // namespace pybind11::detail

namespace {

Queue queue_of(Pointer<> stream, const py::function& memory) {
  return {stream, [memory](int64_t bytes) { return memory(bytes).cast<Pointer<>>().address; }};
}

Cut cut_of(const py::tuple& cut) {
  return {cut[0].cast<int64_t>(), cut[1].cast<int64_t>()};
}

template <class T>
void normalize_as(Pointer<> stream, const py::function& memory, const py::tuple& cut, int64_t rows, int64_t n,
                  Pointer<> log_weights, Pointer<> weights, Pointer<> log_sum, Pointer<> ess, Pointer<int64_t> status) {
  normalize_log_weights(queue_of(stream, memory), cut_of(cut), rows, n, static_cast<const T*>(log_weights.address),
                        static_cast<T*>(weights.address), static_cast<T*>(log_sum.address),
                        static_cast<T*>(ess.address), status);
}

template <class T>
void resample_as(Pointer<> stream, const py::function& memory, const py::tuple& cut, const std::string& scheme,
                 bool log, int64_t rows, int64_t n, int64_t m, Pointer<> weights, Pointer<> u, bool u_is_double,
                 Pointer<int64_t> ancestors, Pointer<int64_t> status) {
  resample(queue_of(stream, memory), cut_of(cut), scheme_of(scheme), log, rows, n, m,
           static_cast<const T*>(weights.address), Uniforms{u.address, u_is_double}, ancestors, status);
}

template <class T>
void adapt_as(Pointer<> stream, const py::function& memory, const py::tuple& cut, const std::string& scheme,
              double threshold, int64_t rows, int64_t n, Pointer<> log_weights, Pointer<> u, bool u_is_double,
              Pointer<int64_t> ancestors, Pointer<int64_t> offspring, Pointer<> normalized, Pointer<> log_sum,
              Pointer<> ess, Pointer<int64_t> status) {
  adaptive_resample(queue_of(stream, memory), cut_of(cut), scheme_of(scheme), threshold, rows, n,
                    static_cast<const T*>(log_weights.address), Uniforms{u.address, u_is_double}, ancestors, offspring,
                    static_cast<T*>(normalized.address), static_cast<T*>(log_sum.address), static_cast<T*>(ess.address),
                    status);
}

void count_offspring(Pointer<> stream, const py::function& memory, const py::tuple& cut, int64_t rows, int64_t m,
                     int64_t n, Pointer<int64_t> ancestors, Pointer<int64_t> counts, Pointer<int64_t> status) {
  offspring(queue_of(stream, memory), cut_of(cut), rows, m, n, ancestors, counts, status);
}

void permute(Pointer<> stream, const py::function& memory, const py::tuple& cut, int64_t rows, int64_t n,
             Pointer<int64_t> ancestors, Pointer<int64_t> permuted, Pointer<int64_t> status) {
  permute_ancestors(queue_of(stream, memory), cut_of(cut), rows, n, ancestors, permuted, status);
}

void gather(Pointer<> stream, const py::function& memory, int64_t n, int64_t m, int64_t row_bytes, Pointer<> particles,
            Pointer<int64_t> ancestors, Pointer<> out, Pointer<int64_t> status) {
  gather_particles(queue_of(stream, memory), n, m, row_bytes, particles, ancestors, out, status);
}

template <class T, void (*Fill)(const Queue&, T*, int64_t, int64_t, const Names&)>
void fill(Pointer<> stream, const py::function& memory, int64_t slots, int64_t numbers, Pointer<T> out, uint64_t seed,
          uint32_t iteration, uint32_t stream_of_numbers, uint32_t first_slot) {
  Fill(queue_of(stream, memory), out, slots, numbers, {seed, iteration, stream_of_numbers, first_slot});
}

void leapfrog_rows(Pointer<> stream, const py::function& memory, int64_t count, int64_t dim, Pointer<float> particles,
                   Pointer<float> momentum, Pointer<float> grad, Pointer<float> precision, Pointer<float> scale,
                   Pointer<float> noise, Pointer<float> out, Pointer<double> energies, float kick, float drift,
                   float likelihood_scale, bool refresh, float persistence, uint64_t seed, uint32_t iteration,
                   uint32_t stream_of_numbers, uint32_t first_slot) {
  const Refresh refreshment{persistence, {seed, iteration, stream_of_numbers, first_slot}};
  leapfrog(queue_of(stream, memory), {count, dim, particles, momentum, grad, precision, scale, noise, out}, kick, drift,
           likelihood_scale, refresh ? &refreshment : nullptr, energies);
}

Batch batch_of(const NetworkSpec& spec, int64_t samples, Pointer<float> x, Pointer<> y, Pointer<float> weights) {
  const bool labels = spec.likelihood == Likelihood::kCategorical;
  return {samples,
          x,
          spec.inputs(),
          1,
          labels ? static_cast<const int64_t*>(y.address) : nullptr,
          labels ? nullptr : static_cast<const float*>(y.address),
          weights};
}

bool fits(const Rows<int64_t>& layers, int precision, int64_t samples) {
  return network_fits(spec_of(layers, 0, 1.f, precision), samples);
}

void log_likelihood(Pointer<> stream, const py::function& memory, const Rows<int64_t>& layers, int likelihood,
                    float noise, int precision, int64_t count, int64_t samples, Pointer<float> particles,
                    Pointer<float> x, Pointer<> y, Pointer<float> weights, Pointer<double> totals,
                    Pointer<float> gradients, Pointer<int64_t> status) {
  const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
  network_log_likelihood(queue_of(stream, memory), spec, batch_of(spec, samples, x, y, weights), count, particles,
                         totals, gradients, status);
}

void outputs_of(Pointer<> stream, const py::function& memory, const Rows<int64_t>& layers, int precision, int64_t count,
                int64_t samples, Pointer<float> particles, Pointer<float> x, Pointer<float> outputs) {
  const NetworkSpec spec = spec_of(layers, 0, 1.f, precision);
  network_outputs(queue_of(stream, memory), spec, batch_of(spec, samples, x, {nullptr}, {nullptr}), count, particles,
                  outputs);
}

void trajectory(Pointer<> stream, const py::function& memory, const Rows<int64_t>& layers, int likelihood, float noise,
                int precision, int64_t count, int64_t samples, Pointer<float> particles, Pointer<float> momentum,
                Pointer<float> gradient, Pointer<float> x, Pointer<> y, Pointer<float> weights,
                Pointer<float> prior_precision, Pointer<float> scale, Pointer<double> totals, Pointer<double> start,
                Pointer<double> end, float size, int64_t steps, float likelihood_scale, bool refresh, float persistence,
                uint64_t seed, uint32_t iteration, uint32_t stream_of_numbers, uint32_t first_slot,
                Pointer<int64_t> status) {
  const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
  const Refresh refreshment{persistence, {seed, iteration, stream_of_numbers, first_slot}};
  const Path path{particles, momentum, gradient, prior_precision,  scale,   start,
                  end,       steps,    size,     likelihood_scale, refresh, refreshment};
  network_trajectory(queue_of(stream, memory), spec, batch_of(spec, samples, x, y, weights), count, path, totals,
                     status);
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "The CUDA engine of fastsmc; fastsmc.ops is the door to it.";
  m.def("schemes", schemes);
  m.def("unavailable", unavailable);
  m.def("device", device);
  m.def("built_with", built_with);
  m.def("run_backwards", run_backwards);
  m.attr("CUT") = py::make_tuple(Cut{}.alone, Cut{}.parts);
  m.def("normalize_log_weights_float32", normalize_as<float>);
  m.def("normalize_log_weights_float64", normalize_as<double>);
  m.def("resample_float32", resample_as<float>);
  m.def("resample_float64", resample_as<double>);
  m.def("adaptive_resample_float32", adapt_as<float>);
  m.def("adaptive_resample_float64", adapt_as<double>);
  m.def("offspring", count_offspring);
  m.def("permute_ancestors", permute);
  m.def("gather_particles", gather);
  m.def("philox", fill<uint32_t, philox_integers>);
  m.def("uniform", fill<double, uniform>);
  m.def("normal", fill<float, standard_normal>);
  m.def("leapfrog", leapfrog_rows);
  m.def("network_fits", fits);
  m.def("network_slices", network_slices);
  m.def("log_likelihood", log_likelihood);
  m.def("network_outputs", outputs_of);
  m.def("trajectory", trajectory);
}
