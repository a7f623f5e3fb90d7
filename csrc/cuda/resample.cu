#include "cuda/resample.h"

#include <algorithm>

#include "cuda/ops.h"
#include "cuda/resample_parts.h"

namespace fastsmc::cuda {

template <class T>
void resample(const Queue& queue, Cut cut, Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m,
              const T* weights, Uniforms u, int64_t* ancestors, int64_t* status) {
  using Short = ResampleRow<T, 128, 4>;
  using Row = ResampleRow<T, 512, 8>;
  static_assert(Row::kLongest == kAlone, "one block takes what rows.h says");
  const auto stream = static_cast<Stream>(queue.stream);
  const Values<T> values{weights, n, log, status};
  const Numbers numbers{u, scheme == Scheme::kSystematic ? 1 : m, status};
  const int64_t longest = std::max(n, m);
  if (longest <= std::min(cut.alone, Short::kLongest))
    return launch(Short{values, numbers, scheme, m, ancestors}, rows, stream);
  if (longest <= std::min(cut.alone, Row::kLongest))
    return launch(Row{values, numbers, scheme, m, ancestors}, rows, stream);

  const Parts parts = parts_of(rows, n, cut.parts), slots = parts_of(rows, m, cut.parts);
  const int passes = passes_for(n);
  const bool drawn = draws(scheme);
  LongRows<T> all{values, numbers, scheme, m, parts, {}, {}, {}, {}, {}, {}, {}};
  all.largest = queue.scratch<double>(parts.grid());
  all.fine = queue.scratch<uint64_t>(passes * parts.grid());
  all.coarse = queue.scratch<uint64_t>(passes * parts.grid());
  all.counts = queue.scratch<int32_t>(rows * n);
  if (drawn) {
    all.sums = queue.scratch<uint64_t>(rows * n);
    all.copies = queue.scratch<uint64_t>(parts.grid());
    all.drawn = queue.scratch<uint64_t>(parts.grid());
  }
  launch(FindLargest<T>{all}, parts.grid(), stream);
  for (int pass = 0; pass < passes; ++pass) launch(SumMasses<T>{all, pass}, parts.grid(), stream);
  launch(Cumulate<T>{all, passes - 1}, parts.grid(), stream);
  if (scheme == Scheme::kResidual) scan_rows(Remainders<T>{all}, parts, all.drawn, stream);
  if (drawn) {
    launch(Draw<T>{all, slots}, slots.grid(), stream);
    scan_rows(Counts{all.counts}, parts, all.drawn, stream);
  }
  launch(Place{numbers, slots, all.counts, n, ancestors}, slots.grid(), stream);
}

template void resample(const Queue&, Cut, Scheme, bool, int64_t, int64_t, int64_t, const float*, Uniforms, int64_t*,
                       int64_t*);
template void resample(const Queue&, Cut, Scheme, bool, int64_t, int64_t, int64_t, const double*, Uniforms, int64_t*,
                       int64_t*);

}  // namespace fastsmc::cuda
