// Log-likelihoods of a network's outputs, and their gradients in place of the outputs. Both are multiplied by the
// weight of the sample.
//
// L is as in common/elementary.h. Outputs are read and written by their number: z(c), z.set(c, value); targets are
// target(c). Weight is a Float, or a type that multiplies one as the factor one. Header for host and device; no Python,
// no torch.
#pragma once

#include "common/elementary.h"

namespace fastsmc {

enum class Likelihood : int { kCategorical, kBernoulli, kGaussian, kPoisson };

namespace loss {

template <class L, class Outputs, class Weight>
FASTSMC_HD static inline typename L::Float categorical(Outputs z, int64_t width, typename L::Int label, Weight weight) {
  using V = typename L::Float;
  V top = z(0), chosen{}, total{};
  for (int64_t c = 0; c < width; ++c) {
    const V logit = z(c);
    top = top > logit ? top : logit;
    chosen = label == static_cast<int32_t>(c) ? logit : chosen;
  }
  for (int64_t c = 0; c < width; ++c) {
    const V e = elementary::exp<L>(z(c) - top);
    total += e;
    z.set(c, e);
  }
  const V inverse = 1.f / total, zero = elementary::splat<L>(0.f), one = elementary::splat<L>(1.f);
  for (int64_t c = 0; c < width; ++c) {
    const V hit = label == static_cast<int32_t>(c) ? one : zero;
    z.set(c, weight * (hit - z(c) * inverse));
  }
  return weight * (chosen - top - elementary::log<L>(total));
}

template <class L, class Outputs, class Targets, class Weight>
FASTSMC_HD static inline typename L::Float bernoulli(Outputs z, int64_t width, Targets target, Weight weight) {
  using V = typename L::Float;
  V sum{};
  for (int64_t c = 0; c < width; ++c) {
    const V logit = z(c), y = target(c);
    sum += L::fma(y, logit, -elementary::softplus<L>(logit));
    z.set(c, weight * (y - elementary::sigmoid<L>(logit)));
  }
  return weight * sum;
}

// Without its normalising constant, which is added in float64.
template <class L, class Outputs, class Targets, class Weight>
FASTSMC_HD static inline typename L::Float gaussian(Outputs z, int64_t width, Targets target, float noise,
                                                    Weight weight) {
  using V = typename L::Float;
  const float precision = 1.f / (noise * noise);
  V sum{};
  for (int64_t c = 0; c < width; ++c) {
    const V residual = target(c) - z(c);
    sum = L::fma(residual, residual, sum);
    z.set(c, weight * (residual * precision));
  }
  return weight * (sum * (-.5f * precision));
}

// Of counts, whose outputs are log rates; without the log factorials, which depend on the targets alone.
template <class L, class Outputs, class Targets, class Weight>
FASTSMC_HD static inline typename L::Float poisson(Outputs z, int64_t width, Targets target, Weight weight) {
  using V = typename L::Float;
  V sum{};
  for (int64_t c = 0; c < width; ++c) {
    const V log_rate = z(c), y = target(c), rate = elementary::exp<L>(log_rate);
    sum += L::fma(y, log_rate, -rate);
    z.set(c, weight * (y - rate));
  }
  return weight * sum;
}

}  // namespace loss
}  // namespace fastsmc
