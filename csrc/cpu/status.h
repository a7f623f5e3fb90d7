// What an op found wrong with its arguments: fastsmc/ops/checks.py holds the sentence for each code.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace fastsmc::cpu {

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
};

struct Status {
  Fault fault = Fault::kNone;
  int64_t position = 0;  // of the first such entry, in the memory order of the argument
  explicit operator bool() const { return fault != Fault::kNone; }
};

// Work on each row of n elements: rows side by side where there are many, else one after the other with each
// of them spread over the threads. Returns the status of the first row that has one.
template <class Work>
Status for_each_row(int64_t rows, int64_t n, const Work& work) {
  const bool large = rows * n >= kParallelFrom, many = n < kParallelFrom;
  Status first;
  int64_t first_row = rows;
  for_each(rows, large && many, [&](int64_t row) {
    const Status status = work(row, large && !many);
    if (!status) return;
#pragma omp critical(fastsmc_status)
    if (row < first_row) {
      first_row = row;
      first = status;
    }
  });
  return first;
}

}  // namespace fastsmc::cpu
