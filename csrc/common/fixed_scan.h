// Resampling in 64-bit fixed point: exact, so any order of evaluation gives the same ancestors on every backend.
//
//   masses     q_i = floor(w_i 2^f), f the largest integer for which their sum T stays below 3 2^60: then T is at least
//              3 2^59 - N / 2. A weight below 2^-f has mass zero and is never drawn.
//   ancestors  the first i with C_i > p_j, C the inclusive prefix sums of q, for the positions p_j of the scheme
//   offset     R(u) = floor(U T / 2^53), U = floor(u 2^53)
//   comb       p_j = floor((j T + R_j) / M): systematic with one R, stratified with one per stratum
//
// The scale f is guessed, and the sums at two neighbouring scales, from one read, say whether the guess was right:
// since floor(floor(2 x) / 2) = floor(x), the sum at f + 1 is at least twice that at f, so sums below the limit at f
// and not below it at f + 1 prove f. The limit is no power of two, so that weights which sum to one are far from it.
//
// A floor takes less than a unit, so all of them together move no C_i by more than N^2 / (3 2^59) spacings T / N: 6e-7
// of one at N = 1e6, 0.6 % at N = 1e8.
//
// N, M < 2^31, so every product below fits, or wraps where only its low 64 bits are wanted.
// Header for host and device; no Python, no torch.
#pragma once

#include "common/host_device.h"

namespace fastsmc::fixed {

constexpr uint64_t kLimit = uint64_t{3} << 60;  // of the sum of all masses
constexpr int kSafeBits = 61;                   // sums of so many bits are below it

FASTSMC_HD static inline int bit_length(uint64_t x) {
  int bits = 0;
  for (int step = 32; step > 0; step /= 2)
    if (x >> step) {
      bits += step;
      x >>= step;
    }
  return bits + static_cast<int>(x);
}

// Shift to the right that gives zero where the distance is not in 0 .. 63, as the vector instructions do.
struct Shift {
  FASTSMC_HD static uint64_t right(uint64_t x, uint64_t by) { return by > 63 ? 0 : x >> by; }
};

// Where a scale lets subnormal weights have a mass, all are multiplied by 2^kLift first, which is exact.
constexpr int kLift = 200;
FASTSMC_HD static inline int lift_of(int scale) {
  return scale > 1022 ? kLift : 0;
}

// floor(w 2^scale), from the bits of w 2^lift for w >= +0: no product, so nothing is rounded or overflows. `distance`
// is negative where the mass has more than 62 bits, and where w is negative, infinite or NaN. U is uint64_t or a vector
// of them, with its Shift.
template <class Shifts, class U>
FASTSMC_HD static inline U quantise(U bits, int scale, U& distance) {
  constexpr uint64_t kImplicit = uint64_t{1} << 52;
  const U mantissa = (bits & (kImplicit - 1)) | kImplicit;  // of a subnormal this is wrong, and shifted out
  distance = static_cast<uint64_t>(1084 - scale + lift_of(scale)) - (bits >> 52);
  return Shifts::right(mantissa << 9, distance);
}

// Masses of all weights at a scale and at the next coarser one.
struct Sums {
  uint64_t fine, coarse;
  bool valid;  // no weight was out of reach of quantise, no sum wrapped
};

FASTSMC_HD static inline void add(Sums& sums, const Sums& more) {
  sums.fine += more.fine;
  sums.coarse += more.coarse;
  sums.valid &= more.valid && sums.fine >> 63 == 0;
}

// f, if the sums at `scale` prove it.
FASTSMC_HD static inline bool settle(const Sums& sums, int& scale) {
  if (!sums.valid || sums.coarse >= kLimit || sums.fine < kLimit / 2) return false;
  scale -= sums.fine >= kLimit;
  return true;
}

// A better guess from valid sums at `scale`: its coarser sum is below the limit, and proves f unless n hides the sum.
FASTSMC_HD static inline int refined_scale(const Sums& sums, int scale, int64_t n) {
  return scale + 1 + kSafeBits - bit_length(sums.fine + static_cast<uint64_t>(n));
}

// The scale at which n weights of at most `largest` cannot sum to the limit.
FASTSMC_HD static inline int safe_scale(double largest, int64_t n) {
  const uint64_t bits = bit_cast<uint64_t>(largest), field = bits >> 52;
  const int top = field > 0 ? static_cast<int>(field) - 1022 : bit_length(bits) - 1074;  // largest < 2^top
  return kSafeBits - bit_length(static_cast<uint64_t>(n - 1)) - top;
}

FASTSMC_HD static inline uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// U, in ascending order as u. By way of a signed number, whose conversion is one instruction everywhere.
FASTSMC_HD static inline uint64_t bits_of(double u) {
  return static_cast<uint64_t>(static_cast<int64_t>(u * 0x1p53));
}

// R(u) in [0, total), from U.
FASTSMC_HD static inline uint64_t offset(uint64_t bits, uint64_t total) {
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
