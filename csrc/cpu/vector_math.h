// The elementary functions on float vectors of this level.
#pragma once

#include "common/elementary.h"
#include "cpu/simd.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

struct Lanes {
  using Float = vfloat;
  using Int = vint;
  __attribute__((always_inline)) static vfloat fma(vfloat a, vfloat b, vfloat c) { return FASTSMC_LEVEL::fma(a, b, c); }
  static vfloat sqrt(vfloat x) { return FASTSMC_LEVEL::sqrt(x); }
  static vfloat to_float(vint n) { return FASTSMC_LEVEL::to_float(n); }
  static vint to_int(vfloat x) { return __builtin_convertvector(x, vint); }
};

static inline vfloat exp(vfloat x) {
  return elementary::exp<Lanes>(x);
}
static inline vfloat log(vfloat x) {
  return elementary::log<Lanes>(x);
}
static inline vfloat tanh(vfloat x) {
  return elementary::tanh<Lanes>(x);
}
static inline vfloat sigmoid(vfloat x) {
  return elementary::sigmoid<Lanes>(x);
}
static inline vfloat softplus(vfloat x) {
  return elementary::softplus<Lanes>(x);
}
static inline void normal_density_and_cdf(vfloat z, vfloat& density, vfloat& cdf) {
  elementary::normal_density_and_cdf<Lanes>(z, density, cdf);
}
static inline void sincos_turns(vfloat turns, vfloat& sine, vfloat& cosine) {
  elementary::sincos_turns<Lanes>(turns, sine, cosine);
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
