// Elementary functions on float vectors. Errors are the largest seen against float64, at every level
// (tests/test_vector_math.py holds them to that): log 1 ulp; exp and softplus 2 ulp; tanh and sigmoid 3 ulp,
// where the result is a normal number; sine and cosine 1e-7 absolute; normal cdf 2.2e-7 absolute, in the
// lower half also 7 + z^2 / 2 ulp.
#pragma once

#include "cpu/simd.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// exp(r) - 1 for |r| <= ln(2)/2: Taylor to r^7, remainder below 6e-9 of r.
static inline vfloat expm1_reduced(vfloat r) {
  vfloat p = fma(r, 1.f / 5040, 1.f / 720);
  p = fma(p, r, splat<vfloat>(1.f / 120));
  p = fma(p, r, splat<vfloat>(1.f / 24));
  p = fma(p, r, splat<vfloat>(1.f / 6));
  p = fma(p, r, splat<vfloat>(.5f));
  return fma(p * r, r, r);
}

// x = n ln 2 + r with |r| <= ln(2)/2; ln 2 in two parts, the first short enough for n * part to be exact.
static inline void reduce_exponent(vfloat x, vint& n, vfloat& r) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const vfloat rounded = (x * 1.44269504f + kMagic) - kMagic;
  n = __builtin_convertvector(rounded, vint);
  r = fma(rounded, -0.693359375f, x);
  r = fma(rounded, 2.12194440e-4f, r);
}

static inline vfloat power_of_two(vint n) {
  return (vfloat)((n + 127) << 23);
}

// Results below the smallest normal number are flushed to zero; NaN stays NaN.
static inline vfloat exp(vfloat x) {
  const vfloat bounded = min(max(x, splat<vfloat>(-87.33f)), splat<vfloat>(88.72f));
  vint n;
  vfloat r;
  reduce_exponent(bounded, n, r);
  const vint half = n >> 1;  // in two steps, since 2^128 is not a float
  vfloat y = (expm1_reduced(r) + 1.f) * power_of_two(half) * power_of_two(n - half);
  y = x < -87.33f ? splat<vfloat>(0.f) : y;
  y = x > 88.72f ? splat<vfloat>(__builtin_inff()) : y;
  return x != x ? x : y;
}

// For positive normal x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)).
// NaN stays NaN.
static inline vfloat log(vfloat x) {
  const vint offset = (vint)x - 0x3F3504F3;  // sqrt(1/2)
  const vint exponent = offset >> 23;
  const vfloat f = (vfloat)((offset & 0x007FFFFF) + 0x3F3504F3) - 1.f;
  const vfloat s = f / (f + 2.f), s2 = s * s;
  vfloat p = fma(s2, 2.f / 9, 2.f / 7);
  p = fma(p, s2, splat<vfloat>(2.f / 5));
  p = fma(p, s2, splat<vfloat>(2.f / 3));
  const vfloat half_square = f * f * .5f;
  const vfloat tail = s * (half_square + p * s2);  // log1p(f) = f - f^2/2 + s (f^2/2 + p s^2)
  const vfloat e = to_float(exponent);
  const vfloat y = fma(e, 0.693359375f, (f - (half_square - (tail - e * 2.12194440e-4f))));
  return x != x ? x : y;
}

static inline vfloat tanh(vfloat x) {
  const vfloat y = min(max(x, splat<vfloat>(-9.5f)), splat<vfloat>(9.5f)) * 2.f;
  vint n;
  vfloat r;
  reduce_exponent(y, n, r);
  const vfloat scale = power_of_two(n);
  const vfloat em1 = fma(expm1_reduced(r), scale, scale - 1.f);  // exp(2x) - 1 without cancellation
  return x != x ? x : em1 / (em1 + 2.f);
}

static inline vfloat sigmoid(vfloat x) {
  return 1.f / (1.f + exp(-x));
}

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))
static inline vfloat softplus(vfloat x) {
  const vfloat e = exp(x > 0 ? -x : x);
  // for small e the rounding of 1 + e is repaired by e - ((1 + e) - 1)
  const vfloat one_plus = 1.f + e;
  return max(x, splat<vfloat>(0.f)) + log(one_plus) + (e - (one_plus - 1.f)) / one_plus;
}

// The standard normal density and distribution function.
// Phi(-z) = exp(-z^2/2) h(z) for z >= 0, h(z) = erfcx(z / sqrt 2) / 2 as a polynomial in t = 1 / (1 + 0.32
// z): least squares in the Chebyshev basis, relative error 3.3e-8.
static inline void normal_density_and_cdf(vfloat z, vfloat& density, vfloat& cdf) {
  const vfloat magnitude = z < 0 ? -z : z;
  const vfloat t = 1.f / fma(magnitude, .32f, 1.f);
  vfloat h = fma(t, -0.02115197293460369f, 0.09575628489255905f);
  h = fma(h, t, splat<vfloat>(-0.1474010944366455f));
  h = fma(h, t, splat<vfloat>(0.06607995182275772f));
  h = fma(h, t, splat<vfloat>(-0.009860294871032238f));
  h = fma(h, t, splat<vfloat>(0.05884035304188728f));
  h = fma(h, t, splat<vfloat>(0.08778712898492813f));
  h = fma(h, t, splat<vfloat>(0.1146274209022522f));
  h = fma(h, t, splat<vfloat>(0.12766067683696747f));
  h = fma(h, t, splat<vfloat>(0.12766152620315552f));
  const vfloat gauss = exp(z * z * -.5f);
  const vfloat tail = gauss * h * t;
  density = gauss * 0.39894228f;
  cdf = z < 0 ? tail : 1.f - tail;
}

// sin and cos of 2 pi turns, for turns in [-1/2, 1/2]: Taylor about the nearest quarter turn.
static inline void sincos_turns(vfloat turns, vfloat& sine, vfloat& cosine) {
  constexpr float kMagic = 12582912.f;
  const vfloat quarter = (turns * 4.f + kMagic) - kMagic;
  const vfloat a = fma(quarter, -.25f, turns) * 6.28318531f, a2 = a * a;
  vfloat s = fma(a2, 1.f / 362880, -1.f / 5040);
  s = fma(s, a2, splat<vfloat>(1.f / 120));
  s = fma(s, a2, splat<vfloat>(-1.f / 6));
  s = fma(s * a2, a, a);
  vfloat c = fma(a2, -1.f / 3628800, 1.f / 40320);
  c = fma(c, a2, splat<vfloat>(-1.f / 720));
  c = fma(c, a2, splat<vfloat>(1.f / 24));
  c = fma(c, a2, splat<vfloat>(-.5f));
  c = fma(c, a2, splat<vfloat>(1.f));
  const vint q = __builtin_convertvector(quarter, vint);
  const vint swap = (q & 1) != 0;
  const vfloat sin0 = swap ? c : s, cos0 = swap ? s : c;
  sine = (q & 2) != 0 ? -sin0 : sin0;
  cosine = ((q + 1) & 2) != 0 ? -cos0 : cos0;
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
