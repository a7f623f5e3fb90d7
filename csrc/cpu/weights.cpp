// Normalisation reads the log weights from memory once. Each block of them takes its own largest entry for reference,
// and leaves its exponentials in the output and their sums behind; then the sums of the blocks are brought to one
// reference, and the output is multiplied, block by block, by what that makes of it: a read and a write where the
// output lies in a cache, instead of a second exponential.
//
// Sums go by 8 lanes through each block, then lanes, then blocks, always in this order: the same bits for any number of
// threads and any instruction set.
#include "cpu/weights.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/parallel.h"

namespace fastsmc::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
Status normalize_row(int64_t n, const T* log_weights, T* weights, T* log_sum, T* ess, bool parallel) {
  RowSums sums;
  if (const Status status = sum_row(n, log_weights, weights, parallel, sums)) return status;
  for_each(blocks_of(n), parallel, [&](int64_t b) {
    weight_kernels_of<T>().scale(weights + b * kWeightBlock, size_of_block(n, b),
                                 sums.factors[static_cast<size_t>(b)] / sums.total);
  });
  *log_sum = static_cast<T>(sums.log_sum());
  *ess = static_cast<T>(sums.ess());
  return {};
}

}  // namespace

template <>
const WeightKernelsOf<float>& weight_kernels_of<float>() {
  return kernels().weights.float32;
}

template <>
const WeightKernelsOf<double>& weight_kernels_of<double>() {
  return kernels().weights.float64;
}

template <class T>
Status largest_weight(const T* values, int64_t n, bool log, bool parallel, double* largest) {
  const auto kernel = log ? weight_kernels_of<T>().largest_log : weight_kernels_of<T>().largest;
  const int64_t blocks = blocks_of(n);
  const double none = log ? -kInfinity : 0;
  std::vector<double> found(static_cast<size_t>(blocks));
  for_each(blocks, parallel,
           [&](int64_t b) { found[static_cast<size_t>(b)] = kernel(values + b * kWeightBlock, size_of_block(n, b)); });
  *largest = none;
  for (int64_t b = 0; b < blocks; ++b) {
    const double value = found[static_cast<size_t>(b)];
    if (value != value) {  // NaN: some entry of this block cannot be a weight
      int64_t i = b * kWeightBlock;
      while (values[i] < kInfinity && (log || values[i] >= 0)) ++i;
      return {log ? Fault::kLogWeight : Fault::kWeight, i};
    }
    *largest = std::max(*largest, value);
  }
  if (*largest == none) return {log ? Fault::kNoLogWeight : Fault::kNoWeight, 0};
  return {};
}

template <class T>
Status sum_row(int64_t n, const T* log_weights, T* exponentials, bool parallel, RowSums& sums) {
  const int64_t blocks = blocks_of(n);
  std::vector<ExpSums> parts(static_cast<size_t>(blocks));
  for_each(blocks, parallel, [&](int64_t b) {
    const int64_t at = b * kWeightBlock;
    parts[static_cast<size_t>(b)] =
        weight_kernels_of<T>().exponentials(log_weights + at, size_of_block(n, b), exponentials + at);
  });
  sums.largest = -kInfinity;
  for (const ExpSums& part : parts) sums.largest = std::max(sums.largest, part.largest);
  for (const ExpSums& part : parts) sums.factors.push_back(part.largest - sums.largest);
  kernels().weights.exp(sums.factors.data(), blocks);
  for (size_t b = 0; b < parts.size(); ++b) {
    sums.total += sums.factors[b] * parts[b].total;
    sums.squares += sums.factors[b] * sums.factors[b] * parts[b].squares;
  }
  if (sums.total > 0) return {};
  return largest_weight(log_weights, n, true, parallel, &sums.largest);  // which says what is wrong
}

template <class T>
Status normalize_log_weights(int64_t rows, int64_t n, const T* log_weights, T* weights, T* log_sum, T* ess) {
  return for_each_row(rows, n, [&](int64_t row, bool parallel) {
    const int64_t at = row * n;
    Status status = normalize_row(n, log_weights + at, weights + at, log_sum + row, ess + row, parallel);
    status.position += at;
    return status;
  });
}

template Status normalize_log_weights(int64_t, int64_t, const float*, float*, float*, float*);
template Status normalize_log_weights(int64_t, int64_t, const double*, double*, double*, double*);
template Status sum_row(int64_t, const float*, float*, bool, RowSums&);
template Status sum_row(int64_t, const double*, double*, bool, RowSums&);
template Status largest_weight(const float*, int64_t, bool, bool, double*);
template Status largest_weight(const double*, int64_t, bool, bool, double*);

}  // namespace fastsmc::cpu
