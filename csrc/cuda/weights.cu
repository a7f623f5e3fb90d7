#include "cuda/weights.h"

#include "cuda/ops.h"

namespace fastsmc::cuda {

template <class T>
const GroupSums* sum_rows(const Queue& queue, const LogWeights<T>& from, const Results<T>& to) {
  const auto stream = static_cast<Stream>(queue.stream);
  auto* const sums = queue.scratch<GroupSums>(from.rows * from.groups());
  launch(SumGroups<T>{from, sums}, from.rows * from.groups(), stream);
  launch(SumRow<T>{from, sums, to}, from.rows, stream);
  return sums;
}

template const GroupSums* sum_rows(const Queue&, const LogWeights<float>&, const Results<float>&);
template const GroupSums* sum_rows(const Queue&, const LogWeights<double>&, const Results<double>&);

template <class T>
void normalize_log_weights(const Queue& queue, Cut cut, int64_t rows, int64_t n, const T* log_weights, T* weights,
                           T* log_sum, T* ess, int64_t* status) {
  const auto stream = static_cast<Stream>(queue.stream);
  const LogWeights<T> from{log_weights, rows, n, status};
  const Results<T> to{weights, log_sum, ess, nullptr};
  if (n <= cut.alone && n <= kGroup) return launch(NormalizeRow<T, 1>{from, to}, rows, stream);
  if (n <= cut.alone && n <= 2 * kGroup) return launch(NormalizeRow<T, 2>{from, to}, rows, stream);
  launch(ScaleGroups<T>{from, sum_rows(queue, from, to), weights}, rows * from.groups(), stream);
}

template void normalize_log_weights(const Queue&, Cut, int64_t, int64_t, const float*, float*, float*, float*,
                                    int64_t*);
template void normalize_log_weights(const Queue&, Cut, int64_t, int64_t, const double*, double*, double*, double*,
                                    int64_t*);

}  // namespace fastsmc::cuda
