// Weights, resampling and gathering. Values are the business of fastsmc/ops and of the ops themselves; here types,
// layouts and sizes are held to what the pointers assume.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bind/bind.h"
#include "common/plain_floats.h"
#include "common/sizes.h"
#include "cpu/resample.h"
#include "cpu/weights.h"

namespace py = pybind11;
using namespace fastsmc;
using namespace fastsmc::cpu;

namespace {

// Below this many elements a call is over sooner than another thread could take the interpreter.
constexpr int64_t kReleaseFrom = 1 << 12;

template <class Work>
py::object run(int64_t size, const Work& work) {
  std::optional<py::gil_scoped_release> release;
  if (size >= kReleaseFrom) release.emplace();
  const Status status = [&] {
    const PlainFloats plain;
    return work();
  }();
  release.reset();
  if (!status) return py::none();
  return py::make_tuple(static_cast<int>(status.fault), status.position);
}

template <class T>
const T* input(const py::array& a) {
  require(holds<T>(a), "the cpu engine takes C-contiguous arrays of matching types; call it through fastsmc.ops");
  return static_cast<const T*>(a.data());
}

template <class T>
T* output(py::array& a, int64_t size) {
  input<T>(a);
  require(a.size() == size, "the cpu engine takes outputs of matching sizes; call it through fastsmc.ops");
  return static_cast<T*>(a.mutable_data());
}

constexpr int64_t kMostInRow = int64_t{1} << 31;  // what the fixed-point sums have room for

int64_t row_size(const py::array& a) {
  require(a.ndim() > 0 && a.size() > 0, "the cpu engine takes arrays with entries; call it through fastsmc.ops");
  const int64_t size = a.shape(a.ndim() - 1);
  require(size < kMostInRow, "the cpu engine takes rows of fewer than 2^31 entries");
  return size;
}

template <class T>
py::object normalize_as(const py::array& log_weights, py::array& weights, py::array& log_sum, py::array& ess) {
  const int64_t n = row_size(log_weights), rows = log_weights.size() / n;
  const T* from = input<T>(log_weights);
  T *to = output<T>(weights, rows * n), *sums = output<T>(log_sum, rows), *sizes = output<T>(ess, rows);
  require_apart({&log_weights, &weights, &log_sum, &ess});
  return run(rows * n, [=] { return normalize_log_weights(rows, n, from, to, sums, sizes); });
}

py::object normalize(const py::array& log_weights, py::array& weights, py::array& log_sum, py::array& ess) {
  return holds<float>(log_weights) ? normalize_as<float>(log_weights, weights, log_sum, ess)
                                   : normalize_as<double>(log_weights, weights, log_sum, ess);
}

Uniforms uniforms_of(const py::array& u, Scheme scheme, int64_t rows, int64_t m) {
  const Uniforms uniforms{u.data(), holds<double>(u)};
  require(uniforms.is_double || holds<float>(u), "u must be a C-contiguous float array");
  require(u.size() == (scheme == Scheme::kSystematic ? rows : checked_product({rows, m})), "u has the wrong size");
  return uniforms;
}

template <class T>
py::object resample_as(Scheme scheme, bool log, const py::array& weights, const py::array& u, py::array& ancestors) {
  const int64_t n = row_size(weights), m = row_size(ancestors), rows = weights.size() / n;
  const T* from = input<T>(weights);
  int64_t* to = output<int64_t>(ancestors, checked_product({rows, m}));
  const Uniforms uniforms = uniforms_of(u, scheme, rows, m);
  require_apart({&weights, &ancestors});
  require_apart({&u, &ancestors});
  return run(rows * (n + m), [=] { return resample(scheme, log, rows, n, m, from, uniforms, to); });
}

py::object resample_any(const std::string& name, bool log, const py::array& weights, const py::array& u,
                        py::array& ancestors) {
  const Scheme scheme = scheme_of(name);
  return holds<float>(weights) ? resample_as<float>(scheme, log, weights, u, ancestors)
                               : resample_as<double>(scheme, log, weights, u, ancestors);
}

template <class T>
py::object adapt_as(Scheme scheme, double threshold, const py::array& log_weights, const py::array& u,
                    py::array& ancestors, py::array& counts, py::array& normalized, py::array& log_sum,
                    py::array& ess) {
  const int64_t n = row_size(log_weights), rows = log_weights.size() / n;
  const T* from = input<T>(log_weights);
  const Uniforms uniforms = uniforms_of(u, scheme, rows, n);
  int64_t *a = output<int64_t>(ancestors, rows * n), *o = output<int64_t>(counts, rows * n);
  T *to = output<T>(normalized, rows * n), *sums = output<T>(log_sum, rows), *sizes = output<T>(ess, rows);
  require_apart({&log_weights, &u, &ancestors, &counts, &normalized, &log_sum, &ess});
  return run(rows * n,
             [=] { return adaptive_resample(scheme, threshold, rows, n, from, uniforms, a, o, to, sums, sizes); });
}

py::object adapt(const std::string& name, double threshold, const py::array& log_weights, const py::array& u,
                 py::array& ancestors, py::array& counts, py::array& normalized, py::array& log_sum, py::array& ess) {
  const auto function = holds<float>(log_weights) ? adapt_as<float> : adapt_as<double>;
  return function(scheme_of(name), threshold, log_weights, u, ancestors, counts, normalized, log_sum, ess);
}

py::object count_offspring(const py::array& ancestors, py::array& counts) {
  const int64_t m = row_size(ancestors), n = row_size(counts), rows = ancestors.size() / m;
  const int64_t* from = input<int64_t>(ancestors);
  int64_t* to = output<int64_t>(counts, checked_product({rows, n}));
  require_apart({&ancestors, &counts});
  return run(rows * (m + n), [=] { return offspring(rows, m, n, from, to); });
}

py::object permute(const py::array& ancestors, py::array& permuted) {
  const int64_t n = row_size(ancestors), rows = ancestors.size() / n;
  const int64_t* from = input<int64_t>(ancestors);
  int64_t* to = output<int64_t>(permuted, rows * n);
  require_apart({&ancestors, &permuted});
  return run(rows * n, [=] { return permute_ancestors(rows, n, from, to); });
}

constexpr uint64_t kHoldsObjects = 1;  // NPY_ITEM_REFCOUNT

py::object gather(const py::array& particles, const py::array& ancestors, py::array& out) {
  require(particles.ndim() > 0 && particles.shape(0) > 0 && (particles.dtype().flags() & kHoldsObjects) == 0 &&
              (particles.flags() & py::array::c_style) != 0 && (out.flags() & py::array::c_style) != 0,
          "the cpu engine gathers C-contiguous arrays of plain types");
  require((out.dtype().flags() & kHoldsObjects) == 0, "out holds Python objects");
  const int64_t n = particles.shape(0), m = row_size(ancestors);
  const int64_t* from = input<int64_t>(ancestors);
  const auto row_bytes = static_cast<size_t>(particles.nbytes() / n);
  require(out.nbytes() == checked_product({static_cast<int64_t>(row_bytes), m}), "out has the wrong size");
  require_apart({&ancestors, &out});
  const void* source = particles.data();
  void* target = out.mutable_data();
  return run(static_cast<int64_t>(row_bytes) * m,
             [=] { return gather_particles(n, m, row_bytes, source, from, target); });
}

}  // namespace

void bind_weights(py::module_& m) {
  m.def("normalize_log_weights", normalize);
  m.def("resample", resample_any);
  m.def("adaptive_resample", adapt);
  m.def("offspring", count_offspring);
  m.def("permute_ancestors", permute);
  m.def("gather_particles", gather);
  m.def("schemes", schemes);
}
