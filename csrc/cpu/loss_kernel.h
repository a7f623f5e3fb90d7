// Log-likelihood and its gradient, in registers behind the last layer: one panel of outputs z [width][row] becomes dz.
// Both are multiplied by the weights of the samples, a vector or One.
#pragma once

#include "common/loss.h"
#include "cpu/kernels.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// The rows of one vector of samples, `row` floats apart.
struct Column {
  float* at;
  int64_t row;
  vfloat operator()(int64_t c) const { return load<vfloat>(at + c * row); }
  void set(int64_t c, vfloat value) const { store(at + c * row, value); }
};

template <class Weight>
static inline vfloat loss_of(const NetworkSpec& spec, Column z, const float* target, Weight weight) {
  const int64_t width = spec.outputs();
  const auto targets = [=](int64_t c) { return load<vfloat>(target + c * z.row); };
  switch (spec.likelihood) {
    case Likelihood::kCategorical:
      return loss::categorical<Lanes>(z, width, load<vint>(target), weight);
    case Likelihood::kBernoulli:
      return loss::bernoulli<Lanes>(z, width, targets, weight);
    case Likelihood::kGaussian:
      return loss::gaussian<Lanes>(z, width, targets, spec.noise, weight);
    case Likelihood::kPoisson:
      return loss::poisson<Lanes>(z, width, targets, weight);
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
  vdouble sum{};
  for (int v = 0; v < columns; ++v) {
    const Column column{z + v * kLanes, row};
    const float* y = target + v * kLanes;
    vfloat value =
        weighted ? loss_of(spec, column, y, load<vfloat>(weights + v * kLanes)) : loss_of(spec, column, y, One{});
    const int64_t left = valid - v * kLanes;
    if (left < kLanes) {
      const vint real = lane_numbers() < static_cast<int32_t>(left < 0 ? 0 : left);
      value = real ? value : vfloat{};
      for (int64_t c = 0; c < width; ++c) column.set(c, real ? column(c) : vfloat{});
    }
    sum += halves_added(value);
  }
  double total = 0;
  for (int i = 0; i < kLanes64; ++i) total += sum[i];
  return total;
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
