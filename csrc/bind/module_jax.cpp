// The CPU engine as custom calls of XLA: resampling, log weights and networks inside of jax.jit.
//
// Operands may have leading dimensions, of which each is that of the result or one: so jax.vmap hands them over
// (vmap_method="expand_dims"), and data that all particles share are not replicated. Shapes are the business of
// fastsmc/integrations/jax.py, values that of the engine; what it refuses becomes an error of XLA.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "common/network_check.h"
#include "cpu/network.h"
#include "cpu/resample.h"
#include "cpu/weights.h"
#include "xla/ffi/api/ffi.h"

namespace py = pybind11;
namespace ffi = xla::ffi;
using namespace fastsmc;
using namespace fastsmc::cpu;

namespace {

using Dims = ffi::AnyBuffer::Dimensions;

int64_t product(Dims dims, size_t begin, size_t end) {
  int64_t count = 1;
  for (size_t k = begin; k < end; ++k) count = checked_product({count, dims[k]});
  return count;
}

// The leading dimensions of a result, which count rows, and where an operand has what belongs to a row.
struct Leading {
  Dims dims;
  size_t rank;

  int64_t rows() const { return product(dims, 0, rank); }
  bool shared(Dims operand) const { return product(operand, 0, rank) == 1; }
  bool whole(Dims operand) const { return product(operand, 0, rank) == rows(); }
  int64_t row_of(Dims operand, int64_t row) const {
    int64_t at = 0, unit = 1;
    for (size_t k = rank; k-- > 0; row /= dims[k]) {
      if (operand[k] > 1) at += row % dims[k] * unit;
      unit *= operand[k];
    }
    return at;
  }
};

bool is_double(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::F64;
}

// The numbers of a buffer, if there is one, as another type: copied if it is not theirs.
template <class To>
class As {
 public:
  explicit As(const ffi::AnyBuffer* buffer) {
    if (buffer == nullptr) return;
    data_ = static_cast<const To*>(buffer->untyped_data());
    const ffi::DataType type = buffer->element_type();
    if (type == ffi::F32) convert<float>(*buffer);
    if (type == ffi::F64) convert<double>(*buffer);
    if (type == ffi::S32) convert<int32_t>(*buffer);
    if (type == ffi::S64) convert<int64_t>(*buffer);
  }
  const To* at(int64_t i) const { return data_ == nullptr ? nullptr : data_ + i; }

 private:
  template <class From>
  void convert(const ffi::AnyBuffer& buffer) {
    if constexpr (!std::is_same_v<From, To>) {
      const auto* from = static_cast<const From*>(buffer.untyped_data());
      copy_.resize(buffer.element_count());
      std::transform(from, from + copy_.size(), copy_.begin(), [](From x) { return static_cast<To>(x); });
      data_ = copy_.data();
    }
  }

  const To* data_ = nullptr;
  std::vector<To> copy_;
};

// Numbers to be written as another type behind the computation, if the buffer has one.
template <class From, class To>
void copy(const std::vector<From>& from, void* to) {
  std::transform(from.begin(), from.end(), static_cast<To*>(to), [](From x) { return static_cast<To>(x); });
}

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

ffi::Error error_of(Fault fault, int64_t position) {
  if (fault == Fault::kNone) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(std::string("fastsmc: ") + sentence(fault) + ", the first at entry " +
                                     std::to_string(position) + " of its array");
}

template <class T>
ffi::Error resample_as(ffi::AnyBuffer weights, ffi::AnyBuffer u, ffi::AnyBuffer ancestors, Scheme scheme, bool log) {
  const Dims out = ancestors.dimensions();
  const Leading lead{out, out.size() - 1};
  const int64_t n = weights.dimensions().back(), m = out.back(), rows = lead.rows();
  const int64_t numbers = scheme == Scheme::kSystematic ? 1 : m;
  const auto* from = static_cast<const T*>(weights.untyped_data());
  const Uniforms uniforms{u.untyped_data(), is_double(u)};
  const bool direct = ancestors.element_type() == ffi::S64;
  std::vector<int64_t> wide(direct ? 0 : static_cast<size_t>(rows * m));
  int64_t* const to = direct ? ancestors.typed_data<int64_t>() : wide.data();
  Status status;
  if (lead.whole(weights.dimensions()) && lead.whole(u.dimensions())) {
    status = resample(scheme, log, rows, n, m, from, uniforms, to);
  } else {
    for (int64_t row = 0; row < rows && !status; ++row)
      status = resample(scheme, log, 1, n, m, from + lead.row_of(weights.dimensions(), row) * n,
                        uniforms.from(lead.row_of(u.dimensions(), row) * numbers), to + row * m);
  }
  if (!direct) copy<int64_t, int32_t>(wide, ancestors.untyped_data());
  return error_of(status.fault, status.position);
}

// weights [.., N], u [..] for systematic, else [.., M] -> ancestors [.., M], int32 or int64
ffi::Error resample_call(ffi::AnyBuffer weights, ffi::AnyBuffer u, ffi::Result<ffi::AnyBuffer> ancestors,
                         int64_t scheme, int64_t log) {
  const auto which = static_cast<Scheme>(scheme);
  return is_double(weights) ? resample_as<double>(weights, u, *ancestors, which, log != 0)
                            : resample_as<float>(weights, u, *ancestors, which, log != 0);
}

template <class T>
ffi::Error normalize_as(ffi::AnyBuffer log_weights, ffi::AnyBuffer weights, ffi::AnyBuffer log_sum,
                        ffi::AnyBuffer ess) {
  const int64_t n = log_weights.dimensions().back();
  const auto rows = static_cast<int64_t>(log_weights.element_count()) / n;
  const Status status = normalize_log_weights(rows, n, log_weights.typed_data<T>(), weights.typed_data<T>(),
                                              log_sum.typed_data<T>(), ess.typed_data<T>());
  return error_of(status.fault, status.position);
}

// log_weights [.., N] -> weights [.., N], log_sum [..], ess [..]
ffi::Error normalize_call(ffi::AnyBuffer log_weights, ffi::Result<ffi::AnyBuffer> weights,
                          ffi::Result<ffi::AnyBuffer> log_sum, ffi::Result<ffi::AnyBuffer> ess) {
  return is_double(log_weights) ? normalize_as<double>(log_weights, *weights, *log_sum, *ess)
                                : normalize_as<float>(log_weights, *weights, *log_sum, *ess);
}

NetworkSpec spec_of(ffi::Span<const int64_t> layers, int64_t likelihood, double noise, int64_t precision) {
  const size_t fields = sizeof(Layer) / sizeof(int64_t);
  const NetworkSpec spec{static_cast<int>(std::min<size_t>(layers.size() / fields, kMaxLayers + 1)),
                         reinterpret_cast<const Layer*>(layers.begin()), static_cast<Likelihood>(likelihood),
                         static_cast<float>(noise), static_cast<Precision>(precision)};
  check_network(spec);
  return spec;
}

// x [.., B, inputs], y [.., B] or [.., B, outputs], as the engine takes them.
class Data {
 public:
  Data(const NetworkSpec& spec, const ffi::AnyBuffer& x, const ffi::AnyBuffer& y)
      : inputs_(spec.inputs()),
        outputs_(spec.outputs()),
        of_x_(x.dimensions()),
        of_y_(y.dimensions()),
        x_(&x),
        targets_(spec.likelihood == Likelihood::kCategorical ? nullptr : &y),
        labels_(spec.likelihood == Likelihood::kCategorical ? &y : nullptr) {}

  bool shared(const Leading& lead) const { return lead.shared(of_x_) && lead.shared(of_y_); }
  Batch batch(const Leading& lead, int64_t row) const {
    const int64_t samples = of_x_[of_x_.size() - 2], first = lead.row_of(of_y_, row) * samples;
    return {samples,
            x_.at(lead.row_of(of_x_, row) * samples * inputs_),
            inputs_,
            1,
            labels_.at(first),
            targets_.at(first * outputs_),
            nullptr};
  }

 private:
  int64_t inputs_, outputs_;
  Dims of_x_, of_y_;
  As<float> x_, targets_;
  As<int64_t> labels_;
};

// particles [.., d], and data -> value [..] and, unless it is null, grad [.., d]
ffi::Error density(ffi::AnyBuffer particles, ffi::AnyBuffer x, ffi::AnyBuffer y, ffi::AnyBuffer value,
                   const ffi::AnyBuffer* grad, ffi::Span<const int64_t> layers, int64_t likelihood, double noise,
                   int64_t precision) {
  const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
  const Dims out = value.dimensions();
  const Leading lead{out, out.size()};
  const int64_t rows = lead.rows(), dim = particles.dimensions().back();
  const bool in_double = is_double(particles);
  const As<float> theta(&particles);
  const Data data(spec, x, y);
  std::vector<double> total(static_cast<size_t>(rows));
  std::vector<float> wide(in_double && grad != nullptr ? static_cast<size_t>(rows * dim) : 0);
  float* const slope = grad == nullptr ? nullptr : in_double ? wide.data() : grad->typed_data<float>();
  int64_t bad = -1;
  if (lead.whole(particles.dimensions()) && data.shared(lead)) {
    bad = network_log_likelihood(spec, data.batch(lead, 0), rows, theta.at(0), total.data(), slope);
  } else {
    for (int64_t row = 0; row < rows && bad < 0; ++row)
      bad = network_log_likelihood(spec, data.batch(lead, row), 1,
                                   theta.at(lead.row_of(particles.dimensions(), row) * dim),
                                   &total[static_cast<size_t>(row)], slope == nullptr ? nullptr : slope + row * dim);
  }
  if (in_double) {
    std::copy(total.begin(), total.end(), value.typed_data<double>());
    if (grad != nullptr) copy<float, double>(wide, grad->untyped_data());
  } else {
    copy<double, float>(total, value.untyped_data());
  }
  return bad < 0 ? ffi::Error::Success() : error_of(Fault::kLabel, bad);
}

ffi::Error value_call(ffi::AnyBuffer particles, ffi::AnyBuffer x, ffi::AnyBuffer y, ffi::Result<ffi::AnyBuffer> value,
                      ffi::Span<const int64_t> layers, int64_t likelihood, double noise, int64_t precision) {
  return density(particles, x, y, *value, nullptr, layers, likelihood, noise, precision);
}

ffi::Error value_and_grad_call(ffi::AnyBuffer particles, ffi::AnyBuffer x, ffi::AnyBuffer y,
                               ffi::Result<ffi::AnyBuffer> value, ffi::Result<ffi::AnyBuffer> grad,
                               ffi::Span<const int64_t> layers, int64_t likelihood, double noise, int64_t precision) {
  return density(particles, x, y, *value, &*grad, layers, likelihood, noise, precision);
}

using Floats = ffi::Buffer<ffi::F32>;

// A call whose exceptions become errors of XLA, which does not catch them.
template <auto Call>
struct Guarded;

template <class... Arguments, ffi::Error (*Call)(Arguments...)>
struct Guarded<Call> {
  static ffi::Error call(Arguments... arguments) {
    try {
      return Call(arguments...);
    } catch (const std::bad_alloc&) {
      return {ffi::ErrorCode::kResourceExhausted, "fastsmc: there is not enough memory"};
    } catch (const std::exception& error) {
      return ffi::Error::InvalidArgument(std::string("fastsmc: ") + error.what());
    }
  }
};

void copy_in(Floats from, Floats to) {
  if (from.typed_data() != to.typed_data()) std::copy_n(from.typed_data(), from.element_count(), to.typed_data());
}

// State [P, d] of all particles, data that they share, prior_precision and scale [d], step_size and likelihood_scale []
// -> the state at the end of a trajectory; there the log-likelihood and the energy of the prior, and what the kinetic
// energy has gained [P]
ffi::Error trajectory_call(Floats particles, Floats momentum, Floats grad, ffi::AnyBuffer x, ffi::AnyBuffer y,
                           Floats prior_precision, Floats scale, Floats step_size, Floats likelihood_scale,
                           ffi::Result<Floats> last, ffi::Result<Floats> last_momentum, ffi::Result<Floats> last_grad,
                           ffi::Result<Floats> log_likelihood, ffi::Result<Floats> prior_energy,
                           ffi::Result<Floats> kinetic_gain, ffi::Span<const int64_t> layers, int64_t likelihood,
                           double noise, int64_t precision, int64_t steps) {
  const NetworkSpec spec = spec_of(layers, likelihood, noise, precision);
  const int64_t count = particles.dimensions()[0], dim = particles.dimensions()[1];
  const Data data(spec, x, y);
  copy_in(particles, *last);
  copy_in(momentum, *last_momentum);
  copy_in(grad, *last_grad);
  std::vector<double> total(static_cast<size_t>(count));
  std::vector<UpdateSums> start(total.size()), end(total.size());
  UpdatePlan plan{};
  plan.dim = dim;
  plan.likelihood_scale = *likelihood_scale.typed_data();
  plan.precision = prior_precision.typed_data();
  plan.scale = scale.typed_data();
  const Phase phase{
      count,        0,         last->typed_data(), last_momentum->typed_data(), last_grad->typed_data(), total.data(),
      start.data(), end.data()};
  const int64_t bad = trajectory(spec, data.batch({x.dimensions(), 0}, 0), plan, *step_size.typed_data(), steps, phase);
  if (bad >= 0) return error_of(Fault::kLabel, bad);
  for (size_t p = 0; p < total.size(); ++p) {
    log_likelihood->typed_data()[p] = static_cast<float>(total[p]);
    prior_energy->typed_data()[p] = static_cast<float>(end[p].prior_energy);
    kinetic_gain->typed_data()[p] = static_cast<float>(end[p].kinetic_after - start[p].kinetic_before);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(kResample, Guarded<resample_call>::call,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<int64_t>("scheme")
                           .Attr<int64_t>("log"));
XLA_FFI_DEFINE_HANDLER(
    kNormalize, Guarded<normalize_call>::call,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER(kValue, Guarded<value_call>::call,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<ffi::Span<const int64_t>>("layers")
                           .Attr<int64_t>("likelihood")
                           .Attr<double>("noise")
                           .Attr<int64_t>("precision"));
XLA_FFI_DEFINE_HANDLER(kValueAndGrad, Guarded<value_and_grad_call>::call,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<ffi::Span<const int64_t>>("layers")
                           .Attr<int64_t>("likelihood")
                           .Attr<double>("noise")
                           .Attr<int64_t>("precision"));
XLA_FFI_DEFINE_HANDLER(kTrajectory, Guarded<trajectory_call>::call,
                       ffi::Ffi::Bind()
                           .Arg<Floats>()
                           .Arg<Floats>()
                           .Arg<Floats>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<Floats>()
                           .Arg<Floats>()
                           .Arg<Floats>()
                           .Arg<Floats>()
                           .Ret<Floats>()
                           .Ret<Floats>()
                           .Ret<Floats>()
                           .Ret<Floats>()
                           .Ret<Floats>()
                           .Ret<Floats>()
                           .Attr<ffi::Span<const int64_t>>("layers")
                           .Attr<int64_t>("likelihood")
                           .Attr<double>("noise")
                           .Attr<int64_t>("precision")
                           .Attr<int64_t>("steps"));

}  // namespace

PYBIND11_MODULE(_jax, m, py::mod_gil_not_used()) {
  m.doc() = "Custom calls of XLA; fastsmc.integrations.jax is the door to them.";
  m.def("targets", [] {
    py::dict targets;
    const auto add = [&](const char* name, XLA_FFI_Handler* handler) {
      targets[name] = py::capsule(reinterpret_cast<void*>(handler));
    };
    add("fastsmc_resample", kResample);
    add("fastsmc_normalize_log_weights", kNormalize);
    add("fastsmc_log_likelihood", kValue);
    add("fastsmc_log_likelihood_and_grad", kValueAndGrad);
    add("fastsmc_trajectory", kTrajectory);
    return targets;
  });
}
