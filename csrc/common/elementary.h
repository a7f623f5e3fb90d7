// Elementary functions in float32, for one number or a vector of them. Errors are the largest seen against float64, at
// every level of csrc/cpu (tests/test_vector_math.py holds them to that): log 1 ulp; exp and softplus 2 ulp; tanh and
// sigmoid 3 ulp, where the result is a normal number; sine and cosine 1e-7 absolute; normal cdf 2.2e-7 absolute, in the
// lower half also 7 + z^2 / 2 ulp. NaN stays NaN.
//
// L says what a number is: the types Float and Int, and fma, sqrt, to_float and to_int of them. A product and a sum
// are one operation only where fma says so (compile without contraction), so that host and device give the same bits.
// Header for host and device; no Python, no torch.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace fastsmc {

// One number.
struct Scalar {
  using Float = float;
  using Int = int32_t;
  FASTSMC_HD static float fma(float a, float b, float c) { return fmaf(a, b, c); }
  FASTSMC_HD static float sqrt(float x) { return sqrtf(x); }
  FASTSMC_HD static float to_float(int32_t n) { return static_cast<float>(n); }
  FASTSMC_HD static int32_t to_int(float x) { return static_cast<int32_t>(x); }
};

namespace elementary {

constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer

template <class L>
FASTSMC_HD static inline typename L::Float splat(float value) {
  return value - typename L::Float{};  // x - 0 is x, whatever its sign
}

// Horner's rule, from the highest coefficient.
template <class L, class... Coefficients>
FASTSMC_HD static inline typename L::Float polynomial(typename L::Float x, float highest, Coefficients... lower) {
  typename L::Float p = splat<L>(highest);
  ((p = L::fma(p, x, splat<L>(lower))), ...);
  return p;
}

template <class V>
FASTSMC_HD static inline V clamp(V x, V low, V high) {
  const V raised = x > low ? x : low;
  return raised < high ? raised : high;
}

// exp(r) - 1 for |r| <= ln(2)/2: Taylor to r^7, remainder below 6e-9 of r.
template <class L>
FASTSMC_HD static inline typename L::Float expm1_reduced(typename L::Float r) {
  const auto p = polynomial<L>(r, 1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f);
  return L::fma(p * r, r, r);
}

// x = n ln 2 + r with |r| <= ln(2)/2; ln 2 in two parts, the first short enough for n * part to be exact.
template <class L>
FASTSMC_HD static inline void reduce_exponent(typename L::Float x, typename L::Int& n, typename L::Float& r) {
  const typename L::Float rounded = (x * 1.44269504f + kMagic) - kMagic;
  n = L::to_int(rounded);
  r = L::fma(rounded, splat<L>(-0.693359375f), x);
  r = L::fma(rounded, splat<L>(2.12194440e-4f), r);
}

// y 2^n, where both y and the result are normal numbers.
template <class L>
FASTSMC_HD static inline typename L::Float scale(typename L::Float y, typename L::Int n) {
  return bit_cast<typename L::Float>(bit_cast<typename L::Int>(y) + n * (1 << 23));
}

// Results below the smallest normal number are flushed to zero.
template <class L>
FASTSMC_HD static inline typename L::Float exp(typename L::Float x) {
  using V = typename L::Float;
  typename L::Int n;
  V r;
  reduce_exponent<L>(clamp(x, splat<L>(-87.33f), splat<L>(88.72f)), n, r);
  const V y = scale<L>(expm1_reduced<L>(r) + 1.f, n), beyond = x + __builtin_inff();  // infinity or NaN
  return x < -87.33f ? splat<L>(0.f) : x <= 88.72f ? y : beyond;
}

// For positive normal x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)).
template <class L>
FASTSMC_HD static inline typename L::Float log(typename L::Float x) {
  using V = typename L::Float;
  using I = typename L::Int;
  const I offset = bit_cast<I>(x) - 0x3F3504F3;  // sqrt(1/2)
  const V f = bit_cast<V>((offset & 0x007FFFFF) + 0x3F3504F3) - 1.f;
  const V s = f / (f + 2.f), s2 = s * s;
  const V p = polynomial<L>(s2, 2.f / 9, 2.f / 7, 2.f / 5, 2.f / 3);
  const V half_square = f * f * .5f;
  const V tail = s * (half_square + p * s2);  // log1p(f) = f - f^2/2 + s (f^2/2 + p s^2)
  const V e = L::to_float(offset >> 23);
  const V y = L::fma(e, splat<L>(0.693359375f), (f - (half_square - (tail - e * 2.12194440e-4f))));
  return x != x ? x : y;
}

template <class L>
FASTSMC_HD static inline typename L::Float tanh(typename L::Float x) {
  using V = typename L::Float;
  typename L::Int n;
  V r;
  reduce_exponent<L>(clamp(x, splat<L>(-9.5f), splat<L>(9.5f)) * 2.f, n, r);
  const V power = scale<L>(splat<L>(1.f), n);
  const V em1 = L::fma(expm1_reduced<L>(r), power, power - 1.f);  // exp(2x) - 1 without cancellation
  return x != x ? x : em1 / (em1 + 2.f);
}

template <class L>
FASTSMC_HD static inline typename L::Float sigmoid(typename L::Float x) {
  return 1.f / (1.f + exp<L>(-x));
}

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))
template <class L>
FASTSMC_HD static inline typename L::Float softplus(typename L::Float x) {
  using V = typename L::Float;
  const V e = exp<L>(x > 0.f ? -x : x);
  // for small e the rounding of 1 + e is repaired by e - ((1 + e) - 1)
  const V one_plus = 1.f + e;
  return (x > 0.f ? x : splat<L>(0.f)) + log<L>(one_plus) + (e - (one_plus - 1.f)) / one_plus;
}

// The standard normal density and distribution function.
// Phi(-z) = exp(-z^2/2) h(z) for z >= 0, h(z) = erfcx(z / sqrt 2) / 2 as a polynomial in t = 1 / (1 + 0.32
// z): least squares in the Chebyshev basis, relative error 3.3e-8.
template <class L>
FASTSMC_HD static inline void normal_density_and_cdf(typename L::Float z, typename L::Float& density,
                                                     typename L::Float& cdf) {
  using V = typename L::Float;
  const V magnitude = z < 0.f ? -z : z;
  const V t = 1.f / L::fma(magnitude, splat<L>(.32f), splat<L>(1.f));
  const V h = polynomial<L>(t, -0.02115197293460369f, 0.09575628489255905f, -0.1474010944366455f, 0.06607995182275772f,
                            -0.009860294871032238f, 0.05884035304188728f, 0.08778712898492813f, 0.1146274209022522f,
                            0.12766067683696747f, 0.12766152620315552f);
  const V gauss = exp<L>(z * z * -.5f);
  const V tail = gauss * h * t;
  density = gauss * 0.39894228f;
  cdf = z < 0.f ? tail : 1.f - tail;
}

// sin and cos of 2 pi turns, for turns in [-1/2, 1/2]: Taylor about the nearest quarter turn.
template <class L>
FASTSMC_HD static inline void sincos_turns(typename L::Float turns, typename L::Float& sine,
                                           typename L::Float& cosine) {
  using V = typename L::Float;
  const V quarter = (turns * 4.f + kMagic) - kMagic;
  const V a = L::fma(quarter, splat<L>(-.25f), turns) * 6.28318531f, a2 = a * a;
  const V p = polynomial<L>(a2, 1.f / 362880, -1.f / 5040, 1.f / 120, -1.f / 6);
  const V s = L::fma(p * a2, a, a);
  const V c = polynomial<L>(a2, -1.f / 3628800, 1.f / 40320, -1.f / 720, 1.f / 24, -.5f, 1.f);
  const typename L::Int q = L::to_int(quarter);
  const auto swap = (q & 1) != 0;
  const V sin0 = swap ? c : s, cos0 = swap ? s : c;
  sine = (q & 2) != 0 ? -sin0 : sin0;
  cosine = ((q + 1) & 2) != 0 ? -cos0 : cos0;
}

}  // namespace elementary
}  // namespace fastsmc
