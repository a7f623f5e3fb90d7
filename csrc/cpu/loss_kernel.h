// Log-likelihood and its gradient, in registers behind the last layer: one panel of outputs z [width][row] becomes dz.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// One vector of samples; the rows of z and target are `row` floats apart.
static inline vfloat categorical(float* z, int64_t row, int64_t width, vint label) {
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
    store(z + c * row, hit - load<vfloat>(z + c * row) * inverse);
  }
  return chosen - top - log(total);
}

static inline vfloat bernoulli(float* z, int64_t row, int64_t width, const float* target) {
  vfloat sum{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat logit = load<vfloat>(z + c * row), y = load<vfloat>(target + c * row);
    sum += fma(y, logit, -softplus(logit));
    store(z + c * row, y - sigmoid(logit));
  }
  return sum;
}

static inline vfloat gaussian(float* z, int64_t row, int64_t width, const float* target, float noise) {
  const float precision = 1.f / (noise * noise);
  vfloat sum{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat residual = load<vfloat>(target + c * row) - load<vfloat>(z + c * row);
    sum = fma(residual, residual, sum);
    store(z + c * row, residual * precision);
  }
  return sum * (-.5f * precision);  // the normalising constant is added by the caller, in float64
}

// Loss of `columns` vectors of samples of which `valid` are real; z becomes dz, zero for the others. Labels are int32,
// other targets float, both [target width][columns * kLanes].
static double panel_loss(const NetworkSpec& spec, float* z, int columns, const void* target, int64_t valid) {
  const int64_t width = spec.outputs(), row = columns * kLanes;
  double sum = 0;
  for (int v = 0; v < columns; ++v) {
    float* column = z + v * kLanes;
    vfloat value{};
    switch (spec.likelihood) {
      case Likelihood::kCategorical:
        value = categorical(column, row, width, load<vint>(static_cast<const int32_t*>(target) + v * kLanes));
        break;
      case Likelihood::kBernoulli:
        value = bernoulli(column, row, width, static_cast<const float*>(target) + v * kLanes);
        break;
      case Likelihood::kGaussian:
        value = gaussian(column, row, width, static_cast<const float*>(target) + v * kLanes, spec.noise);
        break;
    }
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
