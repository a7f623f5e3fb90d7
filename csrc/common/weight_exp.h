// The one exponential for weights: exp(x) for x <= 0 in float64, from products, sums and bit operations
// alone, so that NumPy, every instruction set and every device give the same bits (compile without
// contraction to fma).
//
//   x = n ln 2 + r with |r| <= ln(2)/2;   exp(r) = 1 + r + r^2 (even(r^2) + r odd(r^2)), Taylor to r^13;
//   times 2^n
//
// Error below 1.1 ulp. Below -708 the result is 0: no weight is ever subnormal. Header for host and device; V
// is double or a vector of them, U the unsigned integers of the same shape.
#pragma once

#include "common/host_device.h"

namespace fastsmc {

template <class U, class V>
FASTSMC_HD static inline V exp64(V x) {
  constexpr double kLowest = -708, kLog2e = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;  // n * high is exact
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer, which then stands in the low bits
  const V bounded = x < kLowest ? V{} + kLowest : x;
  const V shifted = bounded * kLog2e + kMagic, n = shifted - kMagic;
  const V r = (bounded - n * kLn2High) - n * kLn2Low, r2 = r * r;
  const V r4 = r2 * r2, r8 = r4 * r4;
  const V even =
      ((1. / 2 + r2 * (1. / 24)) + r4 * (1. / 720 + r2 * (1. / 40320))) + r8 * (1. / 3628800 + r2 * (1. / 479001600));
  const V odd = ((1. / 6 + r2 * (1. / 120)) + r4 * (1. / 5040 + r2 * (1. / 362880))) +
                r8 * (1. / 39916800 + r2 * (1. / 6227020800));
  const V y = 1. + (r + r2 * (even + r * odd));
  const V scaled = bit_cast<V>(bit_cast<U>(y) + (bit_cast<U>(shifted) << 52));
  return x < kLowest ? V{} : scaled;
}

}  // namespace fastsmc
