// Two reads and one write of the log weights beside the search for the largest: exponentials are cheaper to
// make again than to store in float64. Sums go by 8 lanes through each block, then lanes, then blocks, always
// in this order: the same bits for any number of threads and any instruction set.
#include "cpu/weights.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/parallel.h"

namespace fastsmc::cpu {
namespace {

int64_t blocks_of(int64_t n) {
  return (n + kWeightBlock - 1) / kWeightBlock;
}
int64_t size_of_block(int64_t n, int64_t block) {
  return std::min(kWeightBlock, n - block * kWeightBlock);
}

template <class T>
Status normalize_row(int64_t n, const T* log_weights, T* weights, T* log_sum, T* ess, bool parallel) {
  const WeightKernelsOf<T>& kernel = weight_kernels_of<T>();
  double largest;
  if (const Status status = largest_weight(log_weights, n, true, parallel, &largest)) return status;
  const int64_t blocks = blocks_of(n);
  std::vector<ExpSums> partial(static_cast<size_t>(blocks));
  for_each(blocks, parallel, [&](int64_t b) {
    partial[static_cast<size_t>(b)] = kernel.exp_sums(log_weights + b * kWeightBlock, size_of_block(n, b), largest);
  });
  ExpSums sums{0, 0};
  for (const ExpSums& p : partial) {
    sums.total += p.total;
    sums.squares += p.squares;
  }
  for_each(blocks, parallel, [&](int64_t b) {
    const int64_t at = b * kWeightBlock;
    kernel.exp_divided(log_weights + at, size_of_block(n, b), largest, sums.total, weights + at);
  });
  *log_sum = static_cast<T>(largest + std::log(sums.total));
  *ess = static_cast<T>(sums.total * sums.total / sums.squares);
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
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
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
template Status largest_weight(const float*, int64_t, bool, bool, double*);
template Status largest_weight(const double*, int64_t, bool, bool, double*);

}  // namespace fastsmc::cpu
