// Ops as custom calls of XLA, whatever engine computes them: resampling, log weights and networks inside of jax.jit.
//
// Operands may have leading dimensions, of which each is that of the result or one: so jax.vmap hands them over
// (vmap_method="expand_dims"), and data that all particles share are not replicated. fastsmc/integrations/jax.py has
// the sentences about shapes; here they are held to what the pointers assume. Values are the business of the engine.
//
// An Engine is made for one call, by its CtxDecoding. Beside its ops, whose arguments are those of cpu/ or cuda/ops.h,
// it has
//
//   bytes(size)                memory for the length of the call
//   convert(n, from, to)       numbers as another type
//   deliver(n, from, to)       the same for results, behind the op that made them
//   fine()                     whether nothing was refused yet, as far as it knows
//   error()                    what was refused
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "common/network_check.h"
#include "common/plain_floats.h"
#include "common/resampling.h"
#include "xla/ffi/api/ffi.h"

namespace fastsmc::xla_calls {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Dims = Buffer::Dimensions;

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

inline int64_t product(Dims dims, size_t begin, size_t end) {
  int64_t count = 1;
  for (size_t k = begin; k < end; ++k) count = checked_product({count, dims[k]});
  return count;
}

// The leading dimensions of a result, which count rows, and where an operand has what belongs to a row.
struct Leading {
  Dims dims;
  size_t rank;

  int64_t rows() const { return product(dims, 0, rank); }
  // Whether an operand has these, or ones, before dimensions of its own.
  bool before(Dims operand, std::initializer_list<int64_t> own) const {
    if (operand.size() != rank + own.size() || !std::equal(own.begin(), own.end(), operand.begin() + rank))
      return false;
    return std::equal(operand.begin(), operand.begin() + rank, dims.begin(),
                      [](int64_t size, int64_t of_result) { return size == 1 || size == of_result; });
  }
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

inline bool is_double(const Buffer& buffer) {
  return buffer.element_type() == ffi::F64;
}

// Calls work(T{}) for the type of a buffer's numbers.
template <class Work>
void with_type(const Buffer& buffer, const Work& work) {
  switch (buffer.element_type()) {
    case ffi::F32:
      return work(float{});
    case ffi::F64:
      return work(double{});
    case ffi::S32:
      return work(int32_t{});
    case ffi::S64:
      return work(int64_t{});
    default:
      throw std::invalid_argument("an array has a type that no call takes");
  }
}

// Memory of the host, for as long as this or a copy of it is there.
class HostMemory {
 public:
  void* operator()(int64_t size) const {
    kept_->emplace_back(new std::max_align_t[static_cast<size_t>(size) / sizeof(std::max_align_t) + 1]);
    return kept_->back().get();
  }

 private:
  using Kept = std::vector<std::unique_ptr<std::max_align_t[]>>;
  std::shared_ptr<Kept> kept_ = std::make_shared<Kept>();
};

// The numbers of a buffer as another type: copied if it is not theirs.
template <class To, class Engine>
const To* as(Engine& engine, const Buffer& buffer) {
  const To* found = nullptr;
  with_type(buffer, [&](auto number) {
    using From = decltype(number);
    const auto* from = static_cast<const From*>(buffer.untyped_data());
    if constexpr (std::is_same_v<From, To>) {
      found = from;
    } else {
      const auto count = static_cast<int64_t>(buffer.element_count());
      To* const copy = static_cast<To*>(engine.bytes(checked_product({count, sizeof(To)})));
      engine.convert(count, from, copy);
      found = copy;
    }
  });
  return found;
}

// Where results of a type go that a buffer may have in another; `deliver` takes them there.
template <class T, class Engine>
T* results(Engine& engine, const Buffer& buffer) {
  void* found = nullptr;
  with_type(buffer, [&](auto number) {
    const auto count = static_cast<int64_t>(buffer.element_count());
    const bool direct = std::is_same_v<decltype(number), T>;
    found = direct ? buffer.untyped_data() : engine.bytes(checked_product({count, sizeof(T)}));
  });
  return static_cast<T*>(found);
}

template <class T, class Engine>
void deliver(Engine& engine, const T* from, const Buffer& buffer) {
  with_type(buffer, [&](auto number) {
    engine.deliver(static_cast<int64_t>(buffer.element_count()), from,
                   static_cast<decltype(number)*>(buffer.untyped_data()));
  });
}

inline int64_t row_size(const Buffer& buffer) {
  const Dims dims = buffer.dimensions();
  require(dims.size() > 0 && dims.back() > 0, "a row must have at least one entry");
  return dims.back();
}

// weights [.., N], u [..] for systematic, else [.., M] -> ancestors [.., M], int32 or int64
template <class T, class Engine>
void resample(Engine& engine, const Buffer& weights, const Buffer& u, const Buffer& ancestors, Scheme scheme,
              bool log) {
  const Dims out = ancestors.dimensions();
  const Leading lead{out, out.size() - 1};
  const int64_t n = row_size(weights), m = row_size(ancestors), rows = lead.rows();
  const bool one = scheme == Scheme::kSystematic;
  const int64_t numbers = one ? 1 : m;
  require(lead.before(weights.dimensions(), {n}) &&
              (one ? lead.before(u.dimensions(), {}) : lead.before(u.dimensions(), {m})),
          "weights must be [.., N] and u [..] or [.., M]");
  const auto* from = static_cast<const T*>(weights.untyped_data());
  const Uniforms uniforms{u.untyped_data(), is_double(u)};
  int64_t* const to = results<int64_t>(engine, ancestors);
  if (lead.whole(weights.dimensions()) && lead.whole(u.dimensions())) {
    engine.resample(scheme, log, rows, n, m, from, uniforms, to);
  } else {
    for (int64_t row = 0; row < rows && engine.fine(); ++row)
      engine.resample(scheme, log, 1, n, m, from + lead.row_of(weights.dimensions(), row) * n,
                      uniforms.from(lead.row_of(u.dimensions(), row) * numbers), to + row * m);
  }
  deliver(engine, to, ancestors);
}

// log_weights [.., N] -> weights [.., N], log_sum [..], ess [..]
template <class T, class Engine>
void normalize(Engine& engine, const Buffer& log_weights, const Buffer& weights, const Buffer& log_sum,
               const Buffer& ess) {
  const int64_t n = row_size(log_weights);
  const auto rows = static_cast<int64_t>(log_weights.element_count()) / n;
  const auto holds = [](const Buffer& buffer, int64_t count) {
    return static_cast<int64_t>(buffer.element_count()) == count;
  };
  require(holds(weights, rows * n) && holds(log_sum, rows) && holds(ess, rows),
          "log_weights and weights must be [.., N], log_sum and ess [..]");
  T *to = weights.typed_data<T>(), *sums = log_sum.typed_data<T>(), *sizes = ess.typed_data<T>();
  engine.normalize_log_weights(rows, n, log_weights.typed_data<T>(), to, sums, sizes);
  deliver(engine, to, weights);
  deliver(engine, sums, log_sum);
  deliver(engine, sizes, ess);
}

inline NetworkSpec spec_of(ffi::Span<const int64_t> layers, int64_t likelihood, double noise, int64_t precision) {
  const size_t fields = sizeof(Layer) / sizeof(int64_t);
  const NetworkSpec spec{static_cast<int>(std::min<size_t>(layers.size() / fields, kMaxLayers + 1)),
                         reinterpret_cast<const Layer*>(layers.begin()), static_cast<Likelihood>(likelihood),
                         static_cast<float>(noise), static_cast<Precision>(precision)};
  check_network(spec);
  return spec;
}

// x [.., B, inputs], y [.., B] or [.., B, outputs], as engines take them.
class Data {
 public:
  template <class Engine>
  Data(Engine& engine, const NetworkSpec& spec, const Leading& lead, const Buffer& x, const Buffer& y)
      : inputs_(spec.inputs()),
        outputs_(spec.outputs()),
        of_x_(x.dimensions()),
        of_y_(y.dimensions()),
        x_(as<float>(engine, x)) {
    const bool labels = spec.likelihood == Likelihood::kCategorical;
    const int64_t samples = of_x_.size() > lead.rank ? of_x_[lead.rank] : 0;
    require(samples > 0 && lead.before(of_x_, {samples, inputs_}) &&
                (labels ? lead.before(of_y_, {samples}) : lead.before(of_y_, {samples, outputs_})),
            "x must be [.., B, inputs] with B >= 1, y [.., B] or [.., B, outputs]");
    if (labels)
      labels_ = as<int64_t>(engine, y);
    else
      targets_ = as<float>(engine, y);
  }

  bool shared(const Leading& lead) const { return lead.shared(of_x_) && lead.shared(of_y_); }
  Batch batch(const Leading& lead, int64_t row) const {
    const int64_t samples = of_x_[of_x_.size() - 2], first = lead.row_of(of_y_, row) * samples;
    return {samples,
            x_ + lead.row_of(of_x_, row) * samples * inputs_,
            inputs_,
            1,
            labels_ == nullptr ? nullptr : labels_ + first,
            targets_ == nullptr ? nullptr : targets_ + first * outputs_,
            nullptr};
  }

 private:
  int64_t inputs_, outputs_;
  Dims of_x_, of_y_;
  const float *x_, *targets_ = nullptr;
  const int64_t* labels_ = nullptr;
};

// particles [.., d], and data -> value [..] and, unless it is null, grad [.., d]
template <class Engine>
void log_likelihood(Engine& engine, const Buffer& particles, const Buffer& x, const Buffer& y, const Buffer& value,
                    const Buffer* grad, const NetworkSpec& spec, int64_t density) {
  const Dims out = value.dimensions(), of_theta = particles.dimensions();
  const Leading lead{out, out.size()};
  const int64_t rows = lead.rows(), dim = spec.num_params();
  require(lead.before(of_theta, {dim}), "particles must be [.., d], with the parameters of the network");
  require(grad == nullptr || static_cast<int64_t>(grad->element_count()) == checked_product({rows, dim}),
          "the gradient must have an entry for each parameter of each particle");
  const float* const theta = as<float>(engine, particles);
  const Data data(engine, spec, lead, x, y);
  double* const total = results<double>(engine, value);
  float* const slope = grad == nullptr ? nullptr : results<float>(engine, *grad);
  if (lead.whole(of_theta) && data.shared(lead)) {
    engine.log_likelihood(density, spec, data.batch(lead, 0), rows, theta, total, slope);
  } else {
    for (int64_t row = 0; row < rows && engine.fine(); ++row)
      engine.log_likelihood(0, spec, data.batch(lead, row), 1, theta + lead.row_of(of_theta, row) * dim, total + row,
                            slope == nullptr ? nullptr : slope + row * dim);
  }
  deliver(engine, total, value);
  if (grad != nullptr) deliver(engine, slope, *grad);
}

// What a call says to XLA, which does not catch exceptions.
template <class Engine, class Work>
ffi::Error guarded(Engine& engine, const Work& work) {
  const PlainFloats plain;
  try {
    work();
    return engine.error();
  } catch (const std::bad_alloc&) {
    return {ffi::ErrorCode::kResourceExhausted, "fastsmc: there is not enough memory"};
  } catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(std::string("fastsmc: ") + error.what());
  }
}

template <class Engine>
XLA_FFI_Error* resample_call(XLA_FFI_CallFrame* frame) {
  const auto call = [](Engine engine, Buffer weights, Buffer u, ffi::Result<Buffer> ancestors, int64_t scheme,
                       int64_t log) {
    return guarded(engine, [&] {
      const auto which = static_cast<Scheme>(scheme);
      is_double(weights) ? resample<double>(engine, weights, u, *ancestors, which, log != 0)
                         : resample<float>(engine, weights, u, *ancestors, which, log != 0);
    });
  };
  static auto* const handler = ffi::Ffi::Bind()
                                   .Ctx<Engine>()
                                   .template Arg<Buffer>()
                                   .template Arg<Buffer>()
                                   .template Ret<Buffer>()
                                   .template Attr<int64_t>("scheme")
                                   .template Attr<int64_t>("log")
                                   .To(call)
                                   .release();
  return handler->Call(frame);
}

template <class Engine>
XLA_FFI_Error* normalize_call(XLA_FFI_CallFrame* frame) {
  const auto call = [](Engine engine, Buffer log_weights, ffi::Result<Buffer> weights, ffi::Result<Buffer> log_sum,
                       ffi::Result<Buffer> ess) {
    return guarded(engine, [&] {
      is_double(log_weights) ? normalize<double>(engine, log_weights, *weights, *log_sum, *ess)
                             : normalize<float>(engine, log_weights, *weights, *log_sum, *ess);
    });
  };
  static auto* const handler = ffi::Ffi::Bind()
                                   .Ctx<Engine>()
                                   .template Arg<Buffer>()
                                   .template Ret<Buffer>()
                                   .template Ret<Buffer>()
                                   .template Ret<Buffer>()
                                   .To(call)
                                   .release();
  return handler->Call(frame);
}

// The attributes that describe a network, behind whatever else a call takes. `density` is a number for the network and
// its data by which an engine may remember what it computes, or 0.
template <class Binding>
auto with_network(Binding binding) {
  return std::move(binding)
      .template Attr<ffi::Span<const int64_t>>("layers")
      .template Attr<int64_t>("likelihood")
      .template Attr<double>("noise")
      .template Attr<int64_t>("precision")
      .template Attr<int64_t>("density");
}

template <class Engine>
auto bind_density() {
  return ffi::Ffi::Bind().Ctx<Engine>().template Arg<Buffer>().template Arg<Buffer>().template Arg<Buffer>();
}

template <class Engine>
XLA_FFI_Error* value_call(XLA_FFI_CallFrame* frame) {
  const auto call = [](Engine engine, Buffer particles, Buffer x, Buffer y, ffi::Result<Buffer> value,
                       ffi::Span<const int64_t> layers, int64_t likelihood, double noise, int64_t precision,
                       int64_t density) {
    return guarded(engine, [&] {
      log_likelihood(engine, particles, x, y, *value, nullptr, spec_of(layers, likelihood, noise, precision), density);
    });
  };
  static auto* const handler = with_network(bind_density<Engine>().template Ret<Buffer>()).To(call).release();
  return handler->Call(frame);
}

template <class Engine>
XLA_FFI_Error* value_and_grad_call(XLA_FFI_CallFrame* frame) {
  const auto call = [](Engine engine, Buffer particles, Buffer x, Buffer y, ffi::Result<Buffer> value,
                       ffi::Result<Buffer> grad, ffi::Span<const int64_t> layers, int64_t likelihood, double noise,
                       int64_t precision, int64_t density) {
    return guarded(engine, [&] {
      log_likelihood(engine, particles, x, y, *value, &*grad, spec_of(layers, likelihood, noise, precision), density);
    });
  };
  static auto* const handler =
      with_network(bind_density<Engine>().template Ret<Buffer>().template Ret<Buffer>()).To(call).release();
  return handler->Call(frame);
}

inline void add(pybind11::dict& targets, const char* name, XLA_FFI_Handler* handler) {
  targets[name] = pybind11::capsule(reinterpret_cast<void*>(handler));
}

// The handlers that all engines have, by the names of their targets.
template <class Engine>
pybind11::dict targets() {
  pybind11::dict found;
  add(found, "fastsmc_resample", resample_call<Engine>);
  add(found, "fastsmc_normalize_log_weights", normalize_call<Engine>);
  add(found, "fastsmc_log_likelihood", value_call<Engine>);
  add(found, "fastsmc_log_likelihood_and_grad", value_and_grad_call<Engine>);
  return found;
}

}  // namespace fastsmc::xla_calls
