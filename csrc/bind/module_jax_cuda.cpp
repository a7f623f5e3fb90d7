// The CUDA engine as custom calls of XLA (bind/xla_calls.h), on the stream of the computation. Nobody waits for them:
// where arguments are refused, results are NaN, and ancestors -1.
#include <memory>
#include <optional>

#include "bind/xla_calls.h"
#include "cuda/ops.h"

namespace py = pybind11;
using namespace fastsmc;
using namespace fastsmc::xla_calls;

namespace {

class Cuda {
 public:
  Cuda(void* stream, std::function<void*(int64_t)> memory) : queue_{stream, std::move(memory)} {}

  void* bytes(int64_t size) { return queue_.memory(size); }

  template <class From, class To>
  void convert(int64_t n, const From* from, To* to) const {
    move(n, from, to, nullptr);
  }

  template <class From, class To>
  void deliver(int64_t n, const From* from, To* to) {
    move(n, from, to, status());
  }

  template <class T>
  void resample(Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights, Uniforms u,
                int64_t* ancestors) {
    cuda::resample(queue_, cuda::Cut{}, scheme, log, rows, n, m, weights, u, ancestors, status());
  }

  template <class T>
  void normalize_log_weights(int64_t rows, int64_t n, const T* log_weights, T* weights, T* log_sum, T* ess) {
    cuda::normalize_log_weights(queue_, cuda::Cut{}, rows, n, log_weights, weights, log_sum, ess, status());
  }

  void log_likelihood(int64_t, const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles,
                      double* totals, float* gradients) {
    if (!cuda::network_fits(spec, batch.samples))
      throw std::invalid_argument("a block of the GPU has no room for this network");
    cuda::network_log_likelihood(queue_, spec, batch, count, particles, totals, gradients, status());
  }

  bool fine() const { return true; }
  ffi::Error error() const { return ffi::Error::Success(); }

 private:
  template <class From, class To>
  void move(int64_t n, const From* from, To* to, const int64_t* status) const {
    if constexpr (std::is_floating_point_v<From> == std::is_floating_point_v<To>)
      cuda::deliver(queue_, n, from, to, status);
    else
      throw std::invalid_argument("an array has integers for real numbers, or real numbers for integers");
  }

  int64_t* status() {
    if (status_ == nullptr) status_ = cuda::new_status(queue_);
    return status_;
  }

  cuda::Queue queue_;
  int64_t* status_ = nullptr;
};

}  // namespace

template <>
struct xla::ffi::CtxDecoding<Cuda> {
  using Type = Cuda;

  static std::optional<Cuda> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context,
                                    DiagnosticEngine& diagnostic) {
    if (cuda::device() == "cpu") return Cuda{nullptr, HostMemory{}};
    const auto stream = CtxDecoding<PlatformStream<void*>>::Decode(api, context, diagnostic);
    auto scratch = CtxDecoding<ScratchAllocator>::Decode(api, context, diagnostic);
    if (!stream || !scratch) return std::nullopt;
    auto kept = std::make_shared<ScratchAllocator>(std::move(*scratch));
    return Cuda{*stream, [kept](int64_t size) {
                  const auto found = kept->Allocate(static_cast<size_t>(size), 16);  // XLA refuses more
                  if (!found) throw std::bad_alloc();
                  return *found;
                }};
  }
};

PYBIND11_MODULE(_jax_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "Custom calls of XLA on GPUs; fastsmc.integrations.jax is the door to them.";
  m.def("device", cuda::device);
  m.def("targets", targets<Cuda>);
}
