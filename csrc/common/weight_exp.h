// The one exponential for weights: exp(x) in float64 for x <= 0, from products, sums, a table and bit operations alone,
// so that NumPy, every instruction set and every device give the same bits (compile without contraction to fma).
//
//   x = n ln(2)/16 + r with |r| <= ln(2)/32, n = 16 k + j;   exp(x) = 2^k 2^(j/16) exp(r), exp(r) by Taylor to r^7
//
// Error below 1.1 ulp. Below -708 the result is 0: no weight is ever subnormal. NaN stays NaN. Header for host and
// device; V is double or a vector of them, U the unsigned integers of the same shape.
#pragma once

#include "common/host_device.h"

namespace fastsmc {

// The bits of 2^(j/16) less j 2^48: adding n 2^48 makes them those of 2^(n/16).
FASTSMC_HD static inline const uint64_t* exp_table() {
  static constexpr uint64_t table[16] = {
      0x3ff0000000000000u, 0x3fefb5586cf9890fu, 0x3fef72b83c7d517bu, 0x3fef387a6e756238u,
      0x3fef06fe0a31b715u, 0x3feedea64c123422u, 0x3feebfdad5362a27u, 0x3feeab07dd485429u,
      0x3feea09e667f3bcdu, 0x3feea11473eb0187u, 0x3feeace5422aa0dbu, 0x3feec49182a3f090u,
      0x3feee89f995ad3adu, 0x3fef199bdd85529cu, 0x3fef5818dcfba487u, 0x3fefa4afa2a490dau};
  return table;
}

struct ExpTable {
  FASTSMC_HD static uint64_t entry(uint64_t n) { return exp_table()[n & 15]; }
};

// Table::entry(n) is the entry n mod 16, of each lane where U is a vector.
template <class U, class Table, class V>
FASTSMC_HD static inline V exp64(V x) {
  constexpr double kLowest = -708, kSixteenthsPerE = 0x1.71547652b82fep+4;  // 16 / ln 2
  constexpr double kHigh = 0x1.62e42feep-5, kLow = 0x1.a39ef35793c76p-37;   // ln(2) / 16; n * high is exact
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer, which then stands in the low bits
  const V shifted = x * kSixteenthsPerE + kMagic, n = shifted - kMagic;
  const V r = (x - n * kHigh) - n * kLow, r2 = r * r;
  const V tail = ((1. / 2 + r * (1. / 6)) + r2 * (1. / 24 + r * (1. / 120))) + (r2 * r2) * (1. / 720 + r * (1. / 5040));
  const U bits = bit_cast<U>(shifted);
  const V power = bit_cast<V>(Table::entry(bits) + (bits << 48));
  const V y = power + power * (r + r2 * tail);
  return x < kLowest ? V{} : y;  // where n is beyond its range
}

}  // namespace fastsmc
