// Leapfrog steps: one pass over the weights.
//
// It reads position, momentum, gradient and precision and writes momentum and position: 24 bytes a weight, 4 more with
// a scale and 4 with a noise. The normal numbers of a refreshment are made from the counters that name them, four a
// thread, and change hands in shared memory, so that every access is side by side whatever the length of rows. A block
// takes a run of one particle's weights; its three energies are summed in float64, and runs in their order.
//
// Everything that varies from one step to the next is read from the device, so that a captured graph can be replayed.
#pragma once

#include <cmath>

#include "common/update.h"
#include "cuda/collectives.h"
#include "cuda/random.h"

namespace fastsmc::cuda {

// The numbers of a step; deviation is what keeps the momentum standard normal.
struct Plan {
  float kick, drift, likelihood_scale, persistence, deviation;
};

inline float deviation_of(float persistence) {
  return static_cast<float>(std::sqrt(1 - static_cast<double>(persistence) * persistence));
}

struct Leapfrog {
  State state;
  const Plan* plan;
  const Names* names;  // null where the momentum stays
  int64_t runs;
  double* energies;  // [runs, count, 3]: kinetic before and after the kick, of the prior
  static constexpr int kThreads = 256, kItems = 4;
  static constexpr int64_t kRun = kThreads * kItems;

  size_t shared_bytes() const { return kScratch + (names != nullptr ? shared_size<float>(kRun) : 0); }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    using Numbers = typename Block::template Private<Items<float, kItems>>;
    const int64_t particle = block.index() / runs, run = block.index() % runs, row = particle * state.dim;
    const Plan step = *plan;
    void* const scratch = take_scratch(block);
    Numbers v, moved;
    typename Block::template Private<Items<double, 3>> energy;
    const auto for_weights = [&](const auto& work) {
      block.each([&](int thread) {
        FASTSMC_UNROLL
        for (int k = 0; k < kItems; ++k) {
          const int64_t i = run * kRun + k * kThreads + thread;
          if (i < state.dim) work(thread, k, i);
        }
      });
    };
    for_weights([&](int thread, int k, int64_t i) { v[thread][k] = state.momentum[row + i]; });
    if (names != nullptr) {
      auto* const xi = block.template shared<float>(kRun);
      const Names key = *names;
      block.each([&](int thread) { Normals::make(words(key, particle, run * kThreads + thread), xi + 4 * thread); });
      block.sync();
      for_weights([&](int thread, int k, int64_t i) {
        const float deviation = state.noise != nullptr ? state.noise[i] : step.deviation;
        v[thread][k] = update::refreshed<Scalar>(v[thread][k], xi[k * kThreads + thread], deviation, step.persistence);
      });
    }
    block.each([&](int thread) { energy[thread] = {}; });
    for_weights([&](int thread, int k, int64_t i) {
      const float scale = state.scale != nullptr ? state.scale[i] : 1.f;
      const float theta = state.particles[row + i], precision = state.precision[i];
      const auto add = [&](int e, float x, float factor) {
        energy[thread][e] += factor * (static_cast<double>(x) * x);
      };
      add(0, v[thread][k], 1.f);
      v[thread][k] = update::kicked<Scalar>(v[thread][k], theta, state.grad[row + i], precision, scale,
                                            step.likelihood_scale, step.kick);
      add(1, v[thread][k], 1.f);
      moved[thread][k] = update::drifted<Scalar>(theta, v[thread][k], scale, step.drift);
      add(2, moved[thread][k], precision);
    });
    for_weights([&](int thread, int k, int64_t i) {
      state.momentum[row + i] = v[thread][k];
      state.out[row + i] = moved[thread][k];
    });
    FASTSMC_UNROLL
    for (int e = 0; e < 3; ++e) {
      typename Block::template Private<double> part;
      block.each([&](int thread) { part[thread] = energy[thread][e]; });
      const double sum = reduce(block, part, 0., Sum{}, scratch);
      block.each([&](int thread) {
        if (thread == 0) energies[(run * state.count + particle) * 3 + e] = .5 * sum;
      });
    }
  }
};

}  // namespace fastsmc::cuda
