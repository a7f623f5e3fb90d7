// The batch is cut into chunks that stay in the last-level cache; each is packed once, then every particle
// reads it. Chunks depend on the shape alone and each particle is summed by one thread, so the bits do not
// depend on threads.
#include "cpu/mlp.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

namespace fastsmc::cpu {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;
constexpr int64_t kMaxChunk = 16384;
constexpr double kParallelFlops = 2e5;  // below this a parallel region costs more than it saves

struct Aligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Aligned>;

template <class T>
Buffer<T> allocate(size_t count) {
  return Buffer<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
}

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

int64_t chunk_samples(const MlpSpec& spec, const MlpKernels& kernels, int64_t samples) {
  const int64_t fitting = kChunkBytes / static_cast<int64_t>(2 * sizeof(float)) / spec.widths[0];
  const int64_t bounded = std::clamp(fitting / kernels.tile * kernels.tile, kernels.tile, kMaxChunk);
  return std::min(bounded, round_up(samples, kernels.panel));
}

// Panel `p` of the chunk that starts at sample `begin`: x in both layouts, and the targets.
void pack_panel(const MlpSpec& spec, const Batch& batch, int64_t panel, int64_t begin, int64_t p, int64_t chunk,
                float* x_panels, float* x_rows, void* targets) {
  const int64_t inputs = spec.widths[0], outputs = spec.widths[spec.layers];
  const int64_t first = begin + p * panel;
  const int64_t real = std::clamp<int64_t>(batch.samples - first, 0, panel);
  const float* x = batch.x + first * batch.row_stride;
  for (int64_t i0 = 0; i0 < inputs; i0 += panel) {
    const int64_t count = std::min(panel, inputs - i0);
    float* columns = x_panels + (p * inputs + i0) * panel;
    for (int64_t s = 0; s < panel; ++s) {
      const float* from = x + s * batch.row_stride + i0 * batch.column_stride;
      for (int64_t i = 0; i < count; ++i) columns[i * panel + s] = s < real ? from[i * batch.column_stride] : 0.f;
    }
    if (x_rows == nullptr) continue;
    float* rows = x_rows + (i0 / panel * chunk + p * panel) * panel;
    for (int64_t s = 0; s < panel; ++s)
      for (int64_t i = 0; i < panel; ++i) rows[s * panel + i] = i < count ? columns[i * panel + s] : 0.f;
  }
  if (targets == nullptr) return;
  if (spec.likelihood == Likelihood::kCategorical) {
    int32_t* label = static_cast<int32_t*>(targets) + p * panel;
    for (int64_t s = 0; s < panel; ++s) label[s] = s < real ? static_cast<int32_t>(batch.labels[first + s]) : 0;
  } else {
    float* target = static_cast<float*>(targets) + p * outputs * panel;
    for (int64_t s = 0; s < panel; ++s)
      for (int64_t k = 0; k < outputs; ++k)
        target[k * panel + s] = s < real ? batch.targets[(first + s) * outputs + k] : 0.f;
  }
}

// What does not depend on the parameters: the normalising constant of the Gaussian likelihood.
double constant_term(const MlpSpec& spec, int64_t samples) {
  if (spec.likelihood != Likelihood::kGaussian) return 0;
  const double log_root_two_pi = 0.91893853320467274178;
  return -static_cast<double>(samples * spec.widths[spec.layers]) *
         (std::log(static_cast<double>(spec.noise)) + log_root_two_pi);
}

// Packs the batch chunk by chunk and calls work(particle, first sample, chunk, scratch) for every particle of
// each.
template <class Work>
void for_particles(const MlpSpec& spec, const Batch& batch, int64_t count, bool with_rows, Work work) {
  const MlpKernels& engine = kernels().mlp;
  const int64_t inputs = spec.widths[0], panel = engine.panel;
  const bool has_targets = batch.labels != nullptr || batch.targets != nullptr;
  const int64_t target_width = spec.likelihood == Likelihood::kCategorical ? 1 : spec.widths[spec.layers];
  const int64_t chunk = chunk_samples(spec, engine, batch.samples);
  const double flops =
      6. * static_cast<double>(count) * static_cast<double>(mlp_num_params(spec)) * static_cast<double>(batch.samples);
  const int threads = flops < kParallelFlops ? 1 : static_cast<int>(std::min<int64_t>(omp_get_max_threads(), count));
  const size_t scratch = static_cast<size_t>(round_up(static_cast<int64_t>(engine.scratch(spec)), 16));
  const auto scratches = allocate<float>(scratch * static_cast<size_t>(threads));
  const auto x_panels = allocate<float>(static_cast<size_t>(chunk * inputs));
  const auto x_rows = allocate<float>(with_rows ? static_cast<size_t>(chunk * round_up(inputs, panel)) : 0);
  const auto targets = allocate<int32_t>(has_targets ? static_cast<size_t>(chunk * target_width) : 0);

#pragma omp parallel num_threads(threads)
  {
    float* own = scratches.get() + static_cast<size_t>(omp_get_thread_num()) * scratch;
    for (int64_t begin = 0; begin < batch.samples; begin += chunk) {
      const int64_t valid = std::min(chunk, batch.samples - begin);
#pragma omp for schedule(static)
      for (int64_t p = 0; p < (valid + panel - 1) / panel; ++p)
        pack_panel(spec, batch, panel, begin, p, chunk, x_panels.get(), with_rows ? x_rows.get() : nullptr,
                   has_targets ? targets.get() : nullptr);
      const MlpChunk part{chunk, valid, x_panels.get(), x_rows.get(), targets.get()};
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < count; ++i) work(i, begin, part, own);
    }
  }
}

}  // namespace

int64_t mlp_num_params(const MlpSpec& spec) {
  int64_t count = 0;
  for (int l = 0; l < spec.layers; ++l) count += (spec.widths[l] + 1) * spec.widths[l + 1];
  return count;
}

int64_t mlp_log_likelihood(const MlpSpec& spec, const Batch& batch, int64_t count, const float* particles,
                           double* log_likelihood, float* grad) {
  const int64_t outputs = spec.widths[spec.layers];
  if (spec.likelihood == Likelihood::kCategorical)
    for (int64_t i = 0; i < batch.samples; ++i)
      if (batch.labels[i] < 0 || batch.labels[i] >= outputs) return i;
  const int64_t dim = mlp_num_params(spec);
  std::fill(log_likelihood, log_likelihood + count, constant_term(spec, batch.samples));
  if (grad != nullptr) std::fill(grad, grad + count * dim, 0.f);
  const MlpKernels& engine = kernels().mlp;
  for_particles(spec, batch, count, grad != nullptr, [&](int64_t i, int64_t, const MlpChunk& chunk, float* scratch) {
    log_likelihood[i] +=
        engine.particle(spec, chunk, particles + i * dim, grad != nullptr ? grad + i * dim : nullptr, nullptr, scratch);
  });
  return -1;
}

void mlp_outputs(const MlpSpec& spec, const Batch& batch, int64_t count, const float* particles, float* outputs) {
  const int64_t dim = mlp_num_params(spec), width = spec.widths[spec.layers];
  const MlpKernels& engine = kernels().mlp;
  for_particles(spec, batch, count, false, [&](int64_t i, int64_t begin, const MlpChunk& chunk, float* scratch) {
    engine.particle(spec, chunk, particles + i * dim, nullptr, outputs + (i * batch.samples + begin) * width, scratch);
  });
}

}  // namespace fastsmc::cpu
