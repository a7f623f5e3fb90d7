// The CPU engine as custom calls of XLA (bind/xla_calls.h); what it refuses becomes an error of XLA.
#include <optional>
#include <vector>

#include "bind/xla_calls.h"
#include "cpu/evaluations.h"
#include "cpu/network.h"
#include "cpu/resample.h"
#include "cpu/weights.h"

namespace py = pybind11;
using namespace fastsmc;
using namespace fastsmc::xla_calls;

namespace {

const char* sentence(Fault fault) {
  switch (fault) {
    case Fault::kWeight:
      return "a weight is negative, infinite or NaN";
    case Fault::kNoWeight:
      return "a row of weights has only zeros";
    case Fault::kLogWeight:
      return "a log weight is NaN or +inf";
    case Fault::kNoLogWeight:
      return "a row of log weights has only -inf";
    case Fault::kUniform:
      return "a uniform number is not in [0, 1)";
    case Fault::kLabel:
      return "a label is not in [0, outputs)";
    default:
      return "an argument is refused";
  }
}

cpu::Evaluations& evaluations() {
  static cpu::Evaluations of_this_process;
  return of_this_process;
}

class Cpu {
 public:
  void* bytes(int64_t size) const { return memory_(size); }

  template <class From, class To>
  void convert(int64_t n, const From* from, To* to) const {
    std::transform(from, from + n, to, [](From x) { return static_cast<To>(x); });
  }

  template <class From, class To>
  void deliver(int64_t n, const From* from, To* to) const {
    if (static_cast<const void*>(from) != to) convert(n, from, to);
  }

  template <class T>
  void resample(Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights, Uniforms u,
                int64_t* ancestors) {
    status_ = cpu::resample(scheme, log, rows, n, m, weights, u, ancestors);
  }

  template <class T>
  void normalize_log_weights(int64_t rows, int64_t n, const T* log_weights, T* weights, T* log_sum, T* ess) {
    status_ = cpu::normalize_log_weights(rows, n, log_weights, weights, log_sum, ess);
  }

  void log_likelihood(int64_t density, const NetworkSpec& spec, const Batch& batch, int64_t count,
                      const float* particles, double* totals, float* gradients) {
    note_label(density == 0 ? cpu::network_log_likelihood(spec, batch, count, particles, totals, gradients)
                            : evaluations().log_likelihood(density, spec, batch, count, particles, totals, gradients));
  }

  void trajectory(int64_t density, const NetworkSpec& spec, const Batch& batch, const cpu::UpdatePlan& plan, float size,
                  int64_t steps, const cpu::Phase& phase) {
    note_label(density == 0 ? cpu::trajectory(spec, batch, plan, size, steps, phase)
                            : evaluations().trajectory(density, spec, batch, plan, size, steps, phase));
  }

  bool fine() const { return !status_; }

  ffi::Error error() const {
    if (fine()) return ffi::Error::Success();
    return ffi::Error::InvalidArgument(std::string("fastsmc: ") + sentence(status_.fault) + ", the first at entry " +
                                       std::to_string(status_.position) + " of its array");
  }

 private:
  void note_label(int64_t bad) {
    if (bad >= 0) status_ = {Fault::kLabel, bad};
  }

  cpu::Status status_;
  HostMemory memory_;
};

using Floats = ffi::Buffer<ffi::F32>;

bool has_shape(Floats buffer, std::initializer_list<int64_t> shape) {
  const Dims dims = buffer.dimensions();
  return std::equal(dims.begin(), dims.end(), shape.begin(), shape.end());
}

void copy_in(Floats from, Floats to) {
  if (from.typed_data() != to.typed_data()) std::copy_n(from.typed_data(), from.element_count(), to.typed_data());
}

// State [P, d] of all particles, data that they share, prior_precision and scale [d], step_size and likelihood_scale []
// -> the state at the end of a trajectory; there the log-likelihood and the energy of the prior, and what the kinetic
// energy has gained [P]
ffi::Error trajectory(Cpu engine, Floats particles, Floats momentum, Floats grad, Buffer x, Buffer y,
                      Floats prior_precision, Floats scale, Floats step_size, Floats likelihood_scale,
                      ffi::Result<Floats> last, ffi::Result<Floats> last_momentum, ffi::Result<Floats> last_grad,
                      ffi::Result<Floats> log_likelihood, ffi::Result<Floats> prior_energy,
                      ffi::Result<Floats> kinetic_gain, ffi::Span<const int64_t> layers, int64_t likelihood,
                      double noise, int64_t precision, int64_t density, int64_t steps) {
  return guarded(engine, [&] {
    const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
    const int64_t count = particles.element_count() > 0 ? particles.dimensions()[0] : 0, dim = spec.num_params();
    for (const Floats& state : {particles, momentum, grad, *last, *last_momentum, *last_grad})
      require(has_shape(state, {count, dim}) && count > 0, "particles, momentum and grad must be [P, d] with P >= 1");
    for (const Floats& row : {prior_precision, scale})
      require(has_shape(row, {dim}), "prior_precision and scale must be [d]");
    for (const Floats& number : {step_size, likelihood_scale})
      require(has_shape(number, {}), "step_size and likelihood_scale must be numbers");
    for (const Floats& of_each : {*log_likelihood, *prior_energy, *kinetic_gain})
      require(has_shape(of_each, {count}), "what is known of each particle must be [P]");
    require(steps > 0, "a trajectory must have at least one step");
    const Leading alone{x.dimensions(), 0};
    const Data data(engine, spec, alone, x, y);
    copy_in(particles, *last);
    copy_in(momentum, *last_momentum);
    copy_in(grad, *last_grad);
    std::vector<double> total(static_cast<size_t>(count));
    std::vector<cpu::UpdateSums> start(total.size()), end(total.size());
    cpu::UpdatePlan plan{};
    plan.dim = dim;
    plan.likelihood_scale = *likelihood_scale.typed_data();
    plan.precision = prior_precision.typed_data();
    plan.scale = scale.typed_data();
    const cpu::Phase phase{
        count,        0,         last->typed_data(), last_momentum->typed_data(), last_grad->typed_data(), total.data(),
        start.data(), end.data()};
    engine.trajectory(density, spec, data.batch(alone, 0), plan, *step_size.typed_data(), steps, phase);
    for (size_t p = 0; p < total.size(); ++p) {
      log_likelihood->typed_data()[p] = static_cast<float>(total[p]);
      prior_energy->typed_data()[p] = static_cast<float>(end[p].prior_energy);
      kinetic_gain->typed_data()[p] = static_cast<float>(end[p].kinetic_after - start[p].kinetic_before);
    }
  });
}

}  // namespace

template <>
struct xla::ffi::CtxDecoding<Cpu> {
  using Type = Cpu;
  static std::optional<Cpu> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) { return Cpu{}; }
};

namespace {

XLA_FFI_DEFINE_HANDLER(kTrajectory, trajectory,
                       with_network(ffi::Ffi::Bind()
                                        .Ctx<Cpu>()
                                        .Arg<Floats>()
                                        .Arg<Floats>()
                                        .Arg<Floats>()
                                        .Arg<Buffer>()
                                        .Arg<Buffer>()
                                        .Arg<Floats>()
                                        .Arg<Floats>()
                                        .Arg<Floats>()
                                        .Arg<Floats>()
                                        .Ret<Floats>()
                                        .Ret<Floats>()
                                        .Ret<Floats>()
                                        .Ret<Floats>()
                                        .Ret<Floats>()
                                        .Ret<Floats>())
                           .Attr<int64_t>("steps"));

}  // namespace

PYBIND11_MODULE(_jax, m, py::mod_gil_not_used()) {
  m.doc() = "Custom calls of XLA on the CPU; fastsmc.integrations.jax is the door to them.";
  m.def("targets", [] {
    py::dict found = targets<Cpu>();
    add(found, "fastsmc_trajectory", kTrajectory);
    return found;
  });
  m.def("computed", [] { return evaluations().computed(); });
  m.def("forget", [] { evaluations().forget(); });
}
