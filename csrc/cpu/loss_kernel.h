// Log-likelihood and its gradient, in registers behind the last layer: one panel of outputs z [width][row] becomes dz.
// Both are multiplied by the weights of the samples, a vector or One.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// One vector of samples; the rows of z and target are `row` floats apart.
template <class Weight>
static inline vfloat categorical(float* z, int64_t row, int64_t width, vint label, Weight weight) {
  vfloat top = load<vfloat>(z), chosen{}, total{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat logit = load<vfloat>(z + c * row);
    top = max(top, logit);
    chosen = label == static_cast<int32_t>(c) ? logit : chosen;
  }
  for (int64_t c = 0; c < width; ++c) {
    const vfloat e = exp(load<vfloat>(z + c * row) - top);
    total += e;
    store(z + c * row, e);
  }
  const vfloat inverse = 1.f / total, zero{}, one = zero + 1.f;
  for (int64_t c = 0; c < width; ++c) {
    const vfloat hit = label == static_cast<int32_t>(c) ? one : zero;
    store(z + c * row, weight * (hit - load<vfloat>(z + c * row) * inverse));
  }
  return weight * (chosen - top - log(total));
}

template <class Weight>
static inline vfloat bernoulli(float* z, int64_t row, int64_t width, const float* target, Weight weight) {
  vfloat sum{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat logit = load<vfloat>(z + c * row), y = load<vfloat>(target + c * row);
    sum += fma(y, logit, -softplus(logit));
    store(z + c * row, weight * (y - sigmoid(logit)));
  }
  return weight * sum;
}

template <class Weight>
static inline vfloat gaussian(float* z, int64_t row, int64_t width, const float* target, float noise, Weight weight) {
  const float precision = 1.f / (noise * noise);
  vfloat sum{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat residual = load<vfloat>(target + c * row) - load<vfloat>(z + c * row);
    sum = fma(residual, residual, sum);
    store(z + c * row, weight * (residual * precision));
  }
  return weight * (sum * (-.5f * precision));  // the normalising constant is added by the caller, in float64
}

template <class Weight>
static inline vfloat loss(const NetworkSpec& spec, float* z, int64_t row, const float* target, Weight weight) {
  const int64_t width = spec.outputs();
  switch (spec.likelihood) {
    case Likelihood::kCategorical:
      return categorical(z, row, width, load<vint>(target), weight);
    case Likelihood::kBernoulli:
      return bernoulli(z, row, width, target, weight);
    case Likelihood::kGaussian:
      return gaussian(z, row, width, target, spec.noise, weight);
  }
  return vfloat{};
}

static int64_t target_width(const NetworkSpec& spec) {
  return spec.likelihood == Likelihood::kCategorical ? 1 : spec.outputs();
}

// Rows of a panel of targets: int32 labels or floats, [target width], and one more of weights where there are any.
static int64_t target_rows(const NetworkSpec& spec, const Chunk& chunk) {
  return (chunk.has_targets ? target_width(spec) : 0) + (chunk.has_weights ? 1 : 0);
}

// Loss of `columns` vectors of samples of which `valid` are real; z becomes dz, zero for the others. The targets are
// [target rows][columns * kLanes].
static double panel_loss(const NetworkSpec& spec, float* z, int columns, const float* target, bool weighted,
                         int64_t valid) {
  const int64_t width = spec.outputs(), row = columns * kLanes;
  const float* weights = target + target_width(spec) * row;
  double sum = 0;
  for (int v = 0; v < columns; ++v) {
    float* column = z + v * kLanes;
    const float* y = target + v * kLanes;
    vfloat value =
        weighted ? loss(spec, column, row, y, load<vfloat>(weights + v * kLanes)) : loss(spec, column, row, y, One{});
    const int64_t left = valid - v * kLanes;
    if (left < kLanes) {
      const vint real = lane_numbers() < static_cast<int32_t>(left < 0 ? 0 : left);
      value = real ? value : vfloat{};
      for (int64_t c = 0; c < width; ++c) {
        float* dz = column + c * row;
        store(dz, real ? load<vfloat>(dz) : vfloat{});
      }
    }
    sum += sum_lanes(value);
  }
  return sum;
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
