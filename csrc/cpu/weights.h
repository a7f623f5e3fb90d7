// Log weights to weights, log-sum and effective sample size.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/status.h"

namespace fastsmc::cpu {

// log_weights, weights [rows, n]; log_sum, ess [rows]. T is float or double.
template <class T>
Status normalize_log_weights(int64_t rows, int64_t n, const T* log_weights, T* weights, T* log_sum, T* ess);

// Of the exponentials of a row relative to its largest entry; each block of the row has a factor of its own, which
// brings what is relative to its own largest entry there.
struct RowSums {
  double largest = 0, total = 0, squares = 0;
  std::vector<double> factors;

  double log_sum() const { return largest + std::log(total); }
  double ess() const { return total * total / squares; }
};

// Leaves the exponentials of n log weights, each block's relative to its own largest one.
template <class T>
Status sum_row(int64_t n, const T* log_weights, T* exponentials, bool parallel, RowSums& sums);

// The largest of n weights, or log weights, or what is wrong with them.
template <class T>
Status largest_weight(const T* values, int64_t n, bool log, bool parallel, double* largest);

template <class T>
const WeightKernelsOf<T>& weight_kernels_of();

// Sums and scans go by blocks of this size, whatever the number of threads: one fits the first-level cache, with what
// is made of it.
constexpr int64_t kWeightBlock = 2048;

inline int64_t blocks_of(int64_t n) {
  return (n + kWeightBlock - 1) / kWeightBlock;
}
inline int64_t size_of_block(int64_t n, int64_t block) {
  return std::min(kWeightBlock, n - block * kWeightBlock);
}

}  // namespace fastsmc::cpu
