#include "cuda/adaptive.h"

#include <algorithm>
#include <cmath>

namespace fastsmc::cuda {

template <class T>
void adaptive_resample(const Queue& queue, Cut cut, Scheme scheme, double threshold, int64_t rows, int64_t n,
                       const T* log_weights, Uniforms u, int64_t* ancestors, int64_t* offspring, T* normalized,
                       T* log_sum, T* ess, int64_t* status) {
  using Short = AdaptRow<T, 1>;
  using Row = AdaptRow<T, 2>;
  static_assert(Row::kLongest == kAlone, "one block takes what rows.h says");
  const auto stream = static_cast<Stream>(queue.stream);
  const LogWeights<T> from{log_weights, rows, n, status};
  const Values<T> values{log_weights, n, true, status};
  const Numbers numbers = numbers_of(u, scheme, n, status);
  Results<T> to{nullptr, log_sum, ess, nullptr};
  const auto count = static_cast<double>(n);
  const Settled<T> settled{threshold * count, static_cast<T>(-std::log(count)), ancestors, offspring, normalized};
  if (n <= std::min(cut.alone, Short::kLongest))
    return launch(Short{from, {values, numbers, scheme, n}, to, settled}, rows, stream);
  if (n <= std::min(cut.alone, Row::kLongest))
    return launch(Row{from, {values, numbers, scheme, n}, to, settled}, rows, stream);
  const Parts parts = parts_of(rows, n, cut.parts);
  to.sums = queue.scratch<RowSums>(rows);
  sum_rows(queue, from, to);
  const int32_t* const counts = cumulative_counts(queue, scheme, parts, parts, values, numbers);
  launch(Settle<T>{values, numbers, parts, counts, to.sums, settled}, parts.grid(), stream);
  permute_by_counts(queue, parts, offspring, ancestors);
}

template void adaptive_resample(const Queue&, Cut, Scheme, double, int64_t, int64_t, const float*, Uniforms, int64_t*,
                                int64_t*, float*, float*, float*, int64_t*);
template void adaptive_resample(const Queue&, Cut, Scheme, double, int64_t, int64_t, const double*, Uniforms, int64_t*,
                                int64_t*, double*, double*, double*, int64_t*);

}  // namespace fastsmc::cuda
