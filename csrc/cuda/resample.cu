#include "cuda/resample.h"

#include <algorithm>

#include "cuda/ops.h"

namespace fastsmc::cuda {

template <class T>
void resample(const Queue& queue, Cut cut, Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m,
              const T* weights, Uniforms u, int64_t* ancestors, int64_t* status) {
  using Short = RowCounts<T, 128, 4>;
  using Row = RowCounts<T, 512, 8>;
  static_assert(Row::kLongest == kAlone, "one block takes what rows.h says");
  const auto stream = static_cast<Stream>(queue.stream);
  const Values<T> values{weights, n, log, status};
  const Numbers numbers = numbers_of(u, scheme, m, status);
  const int64_t longest = std::max(n, m);
  if (longest <= std::min(cut.alone, Short::kLongest))
    return launch(ResampleRow<T, 128, 4>{Short{values, numbers, scheme, m}, ancestors}, rows, stream);
  if (longest <= std::min(cut.alone, Row::kLongest))
    return launch(ResampleRow<T, 512, 8>{Row{values, numbers, scheme, m}, ancestors}, rows, stream);
  const Parts slots = parts_of(rows, m, cut.parts);
  const int32_t* const counts = cumulative_counts(queue, scheme, parts_of(rows, n, cut.parts), slots, values, numbers);
  launch(Place{numbers, slots, counts, n, ancestors}, slots.grid(), stream);
}

template void resample(const Queue&, Cut, Scheme, bool, int64_t, int64_t, int64_t, const float*, Uniforms, int64_t*,
                       int64_t*);
template void resample(const Queue&, Cut, Scheme, bool, int64_t, int64_t, int64_t, const double*, Uniforms, int64_t*,
                       int64_t*);

}  // namespace fastsmc::cuda
