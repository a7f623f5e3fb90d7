#include "cuda/offspring.h"

#include <algorithm>

#include "cuda/ops.h"

namespace fastsmc::cuda {

template <class Count>
void permute_by_counts(const Queue& queue, const Parts& parts, const Count* counts, int64_t* permuted) {
  const auto stream = static_cast<Stream>(queue.stream);
  auto* const vacancies = queue.scratch<uint64_t>(parts.rows * parts.n);
  scan_rows(Vacancies<Count>{counts, vacancies}, parts, queue.scratch<uint64_t>(parts.grid()), stream);
  launch(FillVacancies<Count>{parts, counts, vacancies, permuted}, parts.grid(), stream);
}

template void permute_by_counts(const Queue&, const Parts&, const int64_t*, int64_t*);

void offspring(const Queue& queue, Cut cut, int64_t rows, int64_t m, int64_t n, const int64_t* ancestors,
               int64_t* counts, int64_t* status) {
  const auto stream = static_cast<Stream>(queue.stream);
  const Ancestors of{ancestors, m, n, status};
  if (std::max(m, n) <= std::min(cut.alone, kAlone)) return launch(CountRow{of, counts}, rows, stream);
  const Parts slots = parts_of(rows, m, cut.parts);
  fill_zero(counts, static_cast<size_t>(rows * n) * sizeof(int64_t), stream);
  launch(CountParts<int64_t>{of, slots, counts}, slots.grid(), stream);
}

void permute_ancestors(const Queue& queue, Cut cut, int64_t rows, int64_t n, const int64_t* ancestors,
                       int64_t* permuted, int64_t* status) {
  const auto stream = static_cast<Stream>(queue.stream);
  const Ancestors of{ancestors, n, n, status};
  if (n <= std::min(cut.alone, kAlone)) return launch(PermuteRow{of, permuted}, rows, stream);
  const Parts parts = parts_of(rows, n, cut.parts);
  auto* const counts = queue.scratch<int32_t>(rows * n);
  fill_zero(counts, static_cast<size_t>(rows * n) * sizeof(int32_t), stream);
  launch(CountParts<int32_t>{of, parts, counts}, parts.grid(), stream);
  permute_by_counts(queue, parts, counts, permuted);
}

}  // namespace fastsmc::cuda
