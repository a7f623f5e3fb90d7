// Activations and their slopes, vertical over any number of vectors.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// z becomes act(z); act'(z) goes to slope unless that is null.
template <class F>
static inline void map_panel(float* z, float* slope, int64_t count, F value_and_slope) {
  for (int64_t i = 0; i < count; i += kLanes) {
    vfloat derivative;
    store(z + i, value_and_slope(load<vfloat>(z + i), derivative));
    if (slope != nullptr) store(slope + i, derivative);
  }
}

static void activate(Activation activation, float* z, float* slope, int64_t count) {
  const vfloat zero{}, one = zero + 1.f;
  switch (activation) {
    case Activation::kIdentity:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) { return d = one, x; });
    case Activation::kRelu:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        d = x > 0 ? one : zero;
        return x < 0 ? zero : x;  // NaN stays NaN
      });
    case Activation::kTanh:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        const vfloat t = tanh(x);
        d = 1.f - t * t;
        return t;
      });
    case Activation::kGelu:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        vfloat density, cdf;
        normal_density_and_cdf(x, density, cdf);
        d = fma(x, density, cdf);
        return x * cdf;
      });
    case Activation::kSilu:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        const vfloat s = sigmoid(x);
        d = s * fma(x, one - s, one);
        return x * s;
      });
  }
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
