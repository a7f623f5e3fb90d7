// Resampling in 64-bit fixed point: exact, so any order of evaluation gives the same ancestors on every
// backend.
//
//   masses     q_i = w_i 2^f rounded half up, f such that their sum T lies in [2^59, 2^62 + N/2]. f comes in
//   two steps,
//              both independent of order: a coarse scale from the largest weight and N, then the scale that
//              the integer sum at the coarse scale allows. A weight below 2^-f-1 has mass zero and is never
//              drawn.
//   ancestors  the first i with C_i > p_j, C the inclusive prefix sums of q, for the positions p_j of the
//   scheme offset     R(u) = floor(U T / 2^53), U = floor(u 2^53) comb       p_j = floor((j T + R_j) / M):
//   systematic with one R, stratified with one per stratum
//
// N, M < 2^31, so every product below fits, or wraps where only its low 64 bits are wanted.
// Header for host and device; no Python, no torch.
#pragma once

#include "common/host_device.h"

namespace fastsmc::fixed {

constexpr int kBits = 62;
constexpr int64_t kLimit = int64_t{1} << 31;  // of N and M

FASTSMC_HD static inline int bit_length(uint64_t x) {
  int bits = 0;
  for (int step = 32; step > 0; step /= 2)
    if (x >> step) {
      bits += step;
      x >>= step;
    }
  return bits + static_cast<int>(x);
}

// Shifts that give zero where the distance is not in 0 .. 63, as the vector instructions do.
struct Shift {
  FASTSMC_HD static uint64_t left(uint64_t x, int64_t by) { return by < 0 || by > 63 ? 0 : x << by; }
  FASTSMC_HD static uint64_t right(uint64_t x, int64_t by) { return by < 0 || by > 63 ? 0 : x >> by; }
};

// w 2^scale rounded half up, from the bits of float64 w >= 0: no product, so no overflow and no subnormal is
// lost. S and U are 64-bit integers with their Shift, or vectors of them with theirs.
template <class Shifts, class S, class U>
FASTSMC_HD static inline U quantise(U bits, int scale) {
  constexpr uint64_t kImplicit = uint64_t{1} << 52;
  const U field = bits >> 52, fraction = bits & (kImplicit - 1);
  const U mantissa = field == 0 ? fraction : fraction | kImplicit;
  const S exponent = bit_cast<S>(field == 0 ? field + 1 : field);
  const S up = exponent + (scale - 1075),
          down = -up;  // w 2^scale = mantissa 2^up; one part is zero, or both are equal
  return ((Shifts::right(mantissa << 1, down) + 1) >> 1) | Shifts::left(mantissa, up);
}

// The scale at which n weights of at most `largest` cannot sum to more than 2^62.
FASTSMC_HD static inline int coarse_scale(double largest, int64_t n) {
  const uint64_t bits = bit_cast<uint64_t>(largest), field = bits >> 52;
  const int top = field > 0 ? static_cast<int>(field) - 1022 : bit_length(bits) - 1074;  // largest < 2^top
  return kBits - bit_length(static_cast<uint64_t>(n - 1)) - top;
}

// Their sum at the coarse scale, each at most a half below its weight, leaves this many bits unused.
FASTSMC_HD static inline int fine_scale(int coarse, uint64_t coarse_sum, int64_t n) {
  return coarse + kBits - bit_length(coarse_sum + static_cast<uint64_t>(n));
}

FASTSMC_HD static inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a1 = a >> 32, a0 = a & 0xFFFFFFFFu, b1 = b >> 32, b0 = b & 0xFFFFFFFFu;
  const uint64_t middle = a1 * b0 + ((a0 * b0) >> 32), carry = a0 * b1 + (middle & 0xFFFFFFFFu);
  return a1 * b1 + (middle >> 32) + (carry >> 32);
}

// R(u) in [0, total), for u in [0, 1).
FASTSMC_HD static inline uint64_t offset(double u, uint64_t total) {
  const uint64_t bits = static_cast<uint64_t>(u * 0x1p53);
  return (multiply_high(bits, total) << 11) | ((bits * total) >> 53);
}

// What M samples divide: for c <= T, c M = quotient T + remainder.
struct Share {
  uint64_t total;
  int64_t samples;
  double ratio;  // M / T
};

struct Division {
  int64_t quotient;
  uint64_t remainder;
};

FASTSMC_HD static inline Share share(uint64_t total, int64_t samples) {
  return {total, samples, static_cast<double>(samples) / static_cast<double>(total)};
}

// Float64 gives the quotient to within one; the remainder, known to be small, is exact in wrapping 64-bit
// products.
FASTSMC_HD static inline Division divide(uint64_t c, const Share& s) {
  int64_t quotient = static_cast<int64_t>(static_cast<double>(c) * s.ratio);
  uint64_t remainder = c * static_cast<uint64_t>(s.samples) - static_cast<uint64_t>(quotient) * s.total;
  if (static_cast<int64_t>(remainder) < 0) {
    --quotient;
    remainder += s.total;
  } else if (remainder >= s.total) {
    ++quotient;
    remainder -= s.total;
  }
  return {quotient, remainder};
}

// How many positions of a comb with one offset R lie below c: those of all j < c M / T, and the next if R
// reaches it.
FASTSMC_HD static inline int64_t positions_below(uint64_t c, const Share& s, uint64_t offset_of_comb) {
  const Division d = divide(c, s);
  return d.quotient + (offset_of_comb < d.remainder);
}

}  // namespace fastsmc::fixed
