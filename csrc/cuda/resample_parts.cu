#include "cuda/resample_parts.h"

#include "cuda/ops.h"

namespace fastsmc::cuda {

template <class T>
int32_t* cumulative_counts(const Queue& queue, Scheme scheme, const Parts& parts, const Parts& slots,
                           const Values<T>& values, const Numbers& numbers) {
  const auto stream = static_cast<Stream>(queue.stream);
  const int passes = passes_for(parts.n);
  const bool drawn = draws(scheme);
  LongRows<T> all{values, numbers, scheme, slots.n, parts, {}, {}, {}, {}, {}, {}, {}};
  all.largest = queue.scratch<double>(parts.grid());
  all.fine = queue.scratch<uint64_t>(passes * parts.grid());
  all.coarse = queue.scratch<uint64_t>(passes * parts.grid());
  all.counts = queue.scratch<int32_t>(parts.rows * parts.n);
  if (drawn) {
    all.sums = queue.scratch<uint64_t>(parts.rows * parts.n);
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
  return all.counts;
}

template int32_t* cumulative_counts(const Queue&, Scheme, const Parts&, const Parts&, const Values<float>&,
                                    const Numbers&);
template int32_t* cumulative_counts(const Queue&, Scheme, const Parts&, const Parts&, const Values<double>&,
                                    const Numbers&);

}  // namespace fastsmc::cuda
