// What an op found wrong with its arguments: fastsmc/ops/checks.py holds the sentence for each code.
#pragma once

namespace fastsmc {

enum class Fault : int {
  kNone,
  kWeight,       // negative, NaN or infinite
  kNoWeight,     // a row of zeros
  kLogWeight,    // NaN or +inf
  kNoLogWeight,  // a row of -inf
  kUniform,      // outside [0, 1)
  kAncestor,     // outside [0, particles)
  kNotPermuted,  // in place, but a[a[i]] != a[i]
  kNotSquare,    // in place, but not as many ancestors as particles
  kOverlap,      // out shares memory with particles, but is not particles
  kLabel,        // outside [0, outputs)
};

}  // namespace fastsmc
