// How an op says what it found wrong with its arguments.
#pragma once

#include <cstdint>

#include "common/fault.h"
#include "cpu/parallel.h"

namespace fastsmc::cpu {

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
