// Leapfrog and Langevin updates, and the normal numbers they use.
//
// One read of position, gradient, momentum and precision, one write of momentum and position: 24 bytes a
// weight, 4 more with a scale and 4 with a noise, the momentum refreshed from counters in registers. Sums run in float
// lanes over kBlock weights, then in float64.
#pragma once

#include "common/normal.h"
#include "common/update.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int64_t kNormals = 4 * kLanes;  // made at a time: one Philox block per lane
constexpr int64_t kBlock = 16 * kNormals;

// kNormals standard normals for parameters 4 * block .. 4 * block + kNormals - 1.
static inline void normals(uint32_t block, philox::Key key, uint32_t slot, uint32_t iteration, uint32_t stream,
                           float* out) {
  vuint c0 = (vuint)lane_numbers() + block, c1 = splat<vuint>(slot);
  vuint c2 = splat<vuint>(iteration), c3 = splat<vuint>(stream);
  for (int round = 0; round < philox::kRounds; ++round) {
    vuint high0, low0, high1, low1;
    multiply_wide(c0, philox::kMultiplier0, high0, low0);
    multiply_wide(c2, philox::kMultiplier1, high1, low1);
    c0 = high1 ^ c1 ^ key.low;
    c1 = low1;
    c2 = high0 ^ c3 ^ key.high;
    c3 = low0;
    key.low += philox::kWeyl0;
    key.high += philox::kWeyl1;
  }
  vfloat n[4];
  box_muller<Lanes>(c0, c1, n[0], n[1]);
  box_muller<Lanes>(c2, c3, n[2], n[3]);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int k = 0; k < 4; ++k) out[4 * lane + k] = n[k][lane];
}

static void normal(float* out, int64_t dim, uint64_t seed, uint32_t slot, uint32_t iteration, uint32_t stream) {
  const philox::Key key = philox::key_of(seed);
  float last[kNormals];
  for (int64_t i = 0; i < dim; i += kNormals) {
    const uint32_t block = static_cast<uint32_t>(i / 4);
    if (i + kNormals <= dim) {
      normals(block, key, slot, iteration, stream, out + i);
    } else {
      normals(block, key, slot, iteration, stream, last);
      memcpy(out + i, last, static_cast<size_t>(dim - i) * sizeof(float));
    }
  }
}

static inline void load_row(const float*, int64_t, int64_t, One&) {}
static inline void load_row(const float* row, int64_t at, int64_t count, vfloat& to) {
  if (count == kLanes)
    to = load<vfloat>(row + at);
  else
    memcpy(&to, row + at, static_cast<size_t>(count) * sizeof(float));
}

// One vector of weights; updates momentum and position and the three running sums.
template <class Scale>
static inline void step_vector(const UpdatePlan& plan, Scale scale, vfloat precision, vfloat grad, vfloat theta,
                               vfloat xi, vfloat noise, vfloat& v, vfloat& moved, vfloat sums[3]) {
  if (plan.refresh) v = update::refreshed<Lanes>(v, xi, noise, plan.persistence);
  sums[0] = fma(v, v, sums[0]);
  v = update::kicked<Lanes>(v, theta, grad, precision, scale, plan.likelihood_scale, plan.kick);
  sums[1] = fma(v, v, sums[1]);
  moved = update::drifted<Lanes>(theta, v, scale, plan.drift);
  sums[2] = fma(precision * moved, moved, sums[2]);
}

// Scale is vfloat, or One where the plan has none.
template <class Scale>
static UpdateSums leapfrog_by(const UpdatePlan& plan, uint32_t slot, const float* particle, const float* grad,
                              float* momentum, float* out) {
  const philox::Key key = philox::key_of(plan.seed);
  const vfloat usual_noise = splat<vfloat>(__builtin_sqrtf(1.f - plan.persistence * plan.persistence));
  float xi[kNormals] = {};
  double total[3] = {};
  for (int64_t begin = 0; begin < plan.dim; begin += kBlock) {
    const int64_t end = begin + kBlock < plan.dim ? begin + kBlock : plan.dim;
    vfloat sums[3] = {};
    for (int64_t i = begin; i < end; i += kNormals) {
      if (plan.refresh) normals(static_cast<uint32_t>(i / 4), key, slot, plan.iteration, plan.stream, xi);
      for (int64_t j = 0; j < kNormals && i + j < end; j += kLanes) {
        const int64_t at = i + j, count = end - at < kLanes ? end - at : kLanes;
        vfloat v, moved;
        Scale scale{};
        load_row(plan.scale, at, count, scale);
        vfloat noise = usual_noise;
        if (plan.noise != nullptr) load_row(plan.noise, at, count, noise);
        if (count == kLanes) {
          v = load<vfloat>(momentum + at);
          step_vector(plan, scale, load<vfloat>(plan.precision + at), load<vfloat>(grad + at),
                      load<vfloat>(particle + at), load<vfloat>(xi + j), noise, v, moved, sums);
          store(momentum + at, v);
          store(out + at, moved);
        } else {
          const size_t bytes = static_cast<size_t>(count) * sizeof(float);
          vfloat precision{}, g{}, theta{}, fresh{};
          v = vfloat{};
          memcpy(&v, momentum + at, bytes);
          memcpy(&precision, plan.precision + at, bytes);
          memcpy(&g, grad + at, bytes);
          memcpy(&theta, particle + at, bytes);
          memcpy(&fresh, xi + j, bytes);
          step_vector(plan, scale, precision, g, theta, fresh, noise, v, moved, sums);
          memcpy(momentum + at, &v, bytes);
          memcpy(out + at, &moved, bytes);
        }
      }
    }
    for (int k = 0; k < 3; ++k) total[k] += sum_lanes(sums[k]);
  }
  return {.5 * total[0], .5 * total[1], .5 * total[2]};
}

static UpdateSums leapfrog(const UpdatePlan& plan, uint32_t slot, const float* particle, const float* grad,
                           float* momentum, float* out) {
  return plan.scale == nullptr ? leapfrog_by<One>(plan, slot, particle, grad, momentum, out)
                               : leapfrog_by<vfloat>(plan, slot, particle, grad, momentum, out);
}

// The vector functions themselves, so that tests can hold them to their stated errors.
static void elementary(int function, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    vfloat in = splat<vfloat>(1.f), result{}, other{};
    memcpy(&in, x + i, static_cast<size_t>(count) * sizeof(float));
    switch (function) {
      case 0:
        result = exp(in);
        break;
      case 1:
        result = log(in);
        break;
      case 2:
        result = tanh(in);
        break;
      case 3:
        result = sigmoid(in);
        break;
      case 4:
        result = softplus(in);
        break;
      case 5:
        normal_density_and_cdf(in, other, result);
        break;
      case 6:
        sincos_turns(in, result, other);
        break;
      case 7:
        sincos_turns(in, other, result);
        break;
    }
    memcpy(y + i, &result, static_cast<size_t>(count) * sizeof(float));
  }
}

static const UpdateKernels update_kernels = {leapfrog, normal, elementary};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
