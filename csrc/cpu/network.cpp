// The batch is cut into chunks that stay in the last-level cache; each is packed once, then every particle reads it.
//
// The tiles of a chunk are cut into even groups, whose gradients are added in order. Threads share out particles, or,
// where there are few of them, their groups. Chunks and groups depend on the batch alone, so the bits depend neither on
// the number of threads nor on that of particles.
#include "cpu/network.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastsmc::cpu {
namespace {

constexpr int64_t kChunkBytes = 16 << 20;
constexpr int64_t kMaxChunk = 4096;
constexpr double kParallelFlops = 2e5;  // below this a parallel region costs more than it saves

int64_t ceil_divide(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

// What does not depend on the parameters: the normalising constant of the Gaussian likelihood.
double constant_term(const NetworkSpec& spec, const Batch& batch) {
  if (spec.likelihood != Likelihood::kGaussian) return 0;
  const double log_root_two_pi = 0.91893853320467274178;
  const double weight = batch.weights == nullptr ? static_cast<double>(batch.samples)
                                                 : std::accumulate(batch.weights, batch.weights + batch.samples, 0.);
  return -(weight * static_cast<double>(spec.outputs())) *
         (std::log(static_cast<double>(spec.noise)) + log_root_two_pi);
}

int64_t first_bad_label(const NetworkSpec& spec, const Batch& batch) {
  if (batch.labels == nullptr) return -1;
  const int64_t outputs = spec.outputs();
  for (int64_t i = 0; i < batch.samples; ++i)
    if (batch.labels[i] < 0 || batch.labels[i] >= outputs) return i;
  return -1;
}

// Memory and geometry of one pass over a batch. pack, add and particle are called by all threads of a team.
class Pass {
 public:
  Pass(const NetworkSpec& spec, const Batch& batch, int64_t count, bool with_grad)
      : spec_(spec),
        batch_(batch),
        count_(count),
        dim_(spec.num_params()),
        with_grad_(with_grad),
        engine_(network_kernels(spec, &batch)) {
    const int64_t tile = engine_.tile;
    // as if there were no weights: chunks decide bits, and weights of one are to change none
    const Chunk unweighted{0, tile, with_grad, batch.has_targets(), false, nullptr};
    const auto tile_bytes = static_cast<int64_t>(engine_.chunk_bytes(spec, unweighted));
    chunk_ = std::clamp(kChunkBytes / tile_bytes * tile, tile, kMaxChunk);
    chunk_ = std::min(chunk_, batch.samples);
    groups_ = groups(chunk_);
    const double flops =
        6. * static_cast<double>(count) * static_cast<double>(batch.samples) * static_cast<double>(dim_);
    const int available = flops < kParallelFlops ? 1 : available_threads();
    by_groups_ = count < 2 * available && groups_ > 1 && available > 1;
    threads_ = static_cast<int>(std::min<int64_t>(available, by_groups_ ? count * groups_ : count));
    const int64_t sums = by_groups_ ? count * groups_ : groups_ > 1 || chunks() > 1 ? threads_ : 0;
    scratch_bytes_ = static_cast<size_t>(ceil_divide(static_cast<int64_t>(engine_.scratch_bytes(spec)), 64) * 64);
    const size_t scratch = memory_.reserve<char>(checked_bytes(scratch_bytes_, static_cast<size_t>(threads_)));
    const size_t packed = memory_.reserve<char>(engine_.chunk_bytes(spec, at(0)));
    const size_t values_at = memory_.reserve<double>(static_cast<size_t>(by_groups_ ? sums : 0));
    const size_t sums_at = memory_.reserve<float>(static_cast<size_t>(with_grad ? checked_product({sums, dim_}) : 0));
    scratch_ = memory_.at<char>(scratch);
    packed_ = memory_.at<char>(packed);
    values_ = memory_.at<double>(values_at);
    sums_ = memory_.at<float>(sums_at);
  }

  int threads() const { return threads_; }
  int64_t chunks() const { return ceil_divide(batch_.samples, chunk_); }
  bool by_particles() const { return !by_groups_; }

  void pack(int64_t chunk) {
    const Chunk part = at(chunk);
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < ceil_divide(part.samples, engine_.tile); ++tile)
      engine_.pack(spec_, batch_, part, tile);
  }

  // Adds the chunk that is packed to log_likelihood [count] and grad [count, num_params], or writes outputs
  // [count, samples, outputs]. Where it is the first chunk, grad is set, not added to.
  void add(int64_t chunk, const float* particles, double* log_likelihood, float* grad, float* outputs) {
    if (by_groups_) return add_by_groups(chunk, particles, log_likelihood, grad, outputs);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count_; ++i) {
      const double value = particle(chunk, i, particles, grad, outputs);
      if (outputs == nullptr) log_likelihood[i] += value;
    }
  }

  // The same for one particle, whose log-likelihood is returned.
  double particle(int64_t chunk, int64_t i, const float* particles, float* grad, float* outputs) {
    const Gradient of_one{grad == nullptr ? nullptr : grad + i * dim_, sums_ + omp_get_thread_num() * dim_, chunk == 0};
    const Chunk part = at(chunk);
    return particle(part, groups_of(part, 0, groups(part.samples)), i, particles, of_one, outputs);
  }

 private:
  static constexpr int64_t kSumBlock = 4096;

  void add_by_groups(int64_t chunk, const float* particles, double* log_likelihood, float* grad, float* outputs) {
    const Chunk part = at(chunk);
    const int64_t count = groups(part.samples);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < count_ * count; ++task) {
      const int64_t group = task % count;
      values_[task] = particle(part, groups_of(part, group, group + 1), task / count, particles,
                               {grad != nullptr ? sums_ + task * dim_ : nullptr, nullptr, true}, outputs);
    }
    if (outputs != nullptr) return;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count_; ++i) {
      double value = 0;
      for (int64_t group = 0; group < count; ++group) value += values_[i * count + group];
      log_likelihood[i] += value;
    }
    if (grad == nullptr) return;
    const int64_t blocks = ceil_divide(dim_, kSumBlock);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < count_ * blocks; ++block) {
      const int64_t i = block / blocks, begin = block % blocks * kSumBlock, size = std::min(kSumBlock, dim_ - begin);
      float* total = grad + i * dim_ + begin;
      const float* sum = sums_ + i * count * dim_ + begin;
      if (chunk == 0) std::copy(sum, sum + size, total);
      for (int64_t group = chunk == 0 ? 1 : 0; group < count; ++group) add_to(total, sum + group * dim_, size);
    }
  }

  double particle(const Chunk& part, Groups some, int64_t i, const float* particles, Gradient grad, float* outputs) {
    if (outputs != nullptr) outputs += (i * batch_.samples + part.begin) * spec_.outputs();
    char* scratch = scratch_ + static_cast<size_t>(omp_get_thread_num()) * scratch_bytes_;
    return engine_.particle(spec_, part, some, particles + i * dim_, grad, outputs, scratch);
  }

  static void add_to(float* total, const float* part, int64_t n) {
    for (int64_t i = 0; i < n; ++i) total[i] += part[i];
  }
  Chunk at(int64_t chunk) const {
    const int64_t begin = chunk * chunk_;
    const int64_t samples = std::min(chunk_, batch_.samples - begin);
    return {begin, samples, with_grad_, batch_.has_targets(), batch_.weights != nullptr, packed_};
  }
  Groups groups_of(const Chunk& part, int64_t begin, int64_t end) const {
    return {ceil_divide(part.samples, engine_.tile), groups(part.samples), begin, end};
  }
  int64_t groups(int64_t samples) const { return ceil_divide(samples, engine_.tiles_in_sum * engine_.tile); }

  const NetworkSpec& spec_;
  const Batch& batch_;
  int64_t count_, dim_;
  bool with_grad_;
  const NetworkKernels& engine_;
  int64_t chunk_, groups_;
  bool by_groups_;
  int threads_;
  size_t scratch_bytes_;
  Workspace memory_;
  char *scratch_, *packed_ = nullptr;
  double* values_;
  float* sums_;
};

void run(const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles, double* log_likelihood,
         float* grad, float* outputs) {
  Pass pass(spec, batch, count, grad != nullptr);
  on_threads(pass.threads(), [&] {
    for (int64_t chunk = 0; chunk < pass.chunks(); ++chunk) {
      pass.pack(chunk);
      pass.add(chunk, particles, log_likelihood, grad, outputs);
    }
  });
}

}  // namespace

int64_t network_log_likelihood(const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles,
                               double* log_likelihood, float* grad) {
  const int64_t bad = first_bad_label(spec, batch);
  if (bad >= 0) return bad;
  std::fill(log_likelihood, log_likelihood + count, constant_term(spec, batch));
  run(spec, batch, count, particles, log_likelihood, grad, nullptr);
  return -1;
}

void network_outputs(const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles,
                     float* outputs) {
  run(spec, batch, count, particles, nullptr, nullptr, outputs);
}

int64_t trajectory(const NetworkSpec& spec, const Batch& batch, UpdatePlan plan, float step_size, int64_t steps,
                   const Phase& phase) {
  const int64_t bad = first_bad_label(spec, batch);
  if (bad >= 0) return bad;
  const int64_t dim = spec.num_params();
  const auto leapfrog = kernels().update.leapfrog;
  const double constant = constant_term(spec, batch);
  plan.dim = dim;

  // after step 0, the half kick that starts, step s moves by the gradient at the position that step s - 1 reached
  const auto update = [&](int64_t i, int64_t step) {
    UpdatePlan now = plan;
    const bool first = step == 0, last = step == steps;
    now.kick = first || last ? step_size / 2 : step_size;
    now.drift = last ? 0 : step_size;
    now.refresh = first && plan.refresh;
    float* position = phase.position + i * dim;
    const UpdateSums sums = leapfrog(now, phase.first_slot + static_cast<uint32_t>(i), position, phase.grad + i * dim,
                                     phase.momentum + i * dim, position);
    if (first) phase.start[i] = sums;
    if (last) phase.end[i] = sums;
  };

  Pass pass(spec, batch, phase.count, true);
  on_threads(pass.threads(), [&] {
    if (pass.chunks() == 1 && pass.by_particles()) {
      // a particle's weights, gradient and momentum stay in the cache of its core from the first step to the last
      pass.pack(0);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < phase.count; ++i) {
        for (int64_t step = 0; step <= steps; ++step) {
          if (step > 0) phase.log_likelihood[i] = constant + pass.particle(0, i, phase.position, phase.grad, nullptr);
          update(i, step);
        }
      }
    } else {
      for (int64_t step = 0; step <= steps; ++step) {
        if (step > 0) {
#pragma omp for schedule(static)
          for (int64_t i = 0; i < phase.count; ++i) phase.log_likelihood[i] = constant;
          for (int64_t chunk = 0; chunk < pass.chunks(); ++chunk) {
            if (step == 1 || pass.chunks() > 1) pass.pack(chunk);
            pass.add(chunk, phase.position, phase.log_likelihood, phase.grad, nullptr);
          }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < phase.count; ++i) update(i, step);
      }
    }
  });
  return -1;
}

}  // namespace fastsmc::cpu
