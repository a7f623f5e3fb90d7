// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and what fastsmc makes of its
// integers. The counter says which number is meant, so no state is kept and any order of evaluation gives the same
// integers on every backend:
//
//   key     = (seed low, seed high)
//   counter = (parameter index / 4, particle slot, iteration, stream)
//   word k of the output serves parameter 4 * (index / 4) + k
//
// Header for host and device; no Python, no torch.
#pragma once

#include "common/host_device.h"

namespace fastsmc::philox {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

struct Counter {
  uint32_t word[4];
};

struct Key {
  uint32_t low, high;
};

FASTSMC_HD inline Key key_of(uint64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

FASTSMC_HD inline Counter philox4x32(Counter c, Key key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kMultiplier0) * c.word[0];
    const uint64_t p1 = static_cast<uint64_t>(kMultiplier1) * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ key.low, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ key.high, static_cast<uint32_t>(p0)}};
    key.low += kWeyl0;
    key.high += kWeyl1;
  }
  return c;
}

// 53 bits in [0, 1), from two words: exact in float64.
FASTSMC_HD inline double uniform53(uint32_t high, uint32_t low) {
  return static_cast<double>((static_cast<uint64_t>(high) << 21) ^ (low >> 11)) * 0x1p-53;
}

}  // namespace fastsmc::philox
