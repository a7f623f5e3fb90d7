#include "cuda/gather.h"

#include <algorithm>

#include "cuda/ops.h"

namespace fastsmc::cuda {
namespace {

// The first of these faults that the arguments have, whatever the ancestors are.
Fault fault_of(int64_t n, int64_t m, int64_t row_bytes, const void* particles, const void* out) {
  const auto from = reinterpret_cast<uintptr_t>(particles), to = reinterpret_cast<uintptr_t>(out);
  if (from == to) return n == m ? Fault::kNone : Fault::kNotSquare;
  const bool overlap =
      from < to + static_cast<uintptr_t>(m * row_bytes) && to < from + static_cast<uintptr_t>(n * row_bytes);
  return overlap ? Fault::kOverlap : Fault::kNone;
}

}  // namespace

void gather_particles(const Queue& queue, int64_t n, int64_t m, int64_t row_bytes, const void* particles,
                      const int64_t* ancestors, void* out, int64_t* status) {
  const auto stream = static_cast<Stream>(queue.stream);
  const bool in_place = particles == out && row_bytes > 0;
  const Fault fault = row_bytes > 0 ? fault_of(n, m, row_bytes, particles, out) : Fault::kNone;
  if (fault != Fault::kNone) launch(Store<int64_t>{status, packed(fault, 0)}, 1, stream);
  const CheckAncestors check{ancestors, n, m, in_place && fault == Fault::kNone, status};
  launch(check, (m + CheckAncestors::kThreads - 1) / CheckAncestors::kThreads, stream);
  if (row_bytes == 0) return;
  const auto move = [&](auto word) {
    using W = decltype(word);
    constexpr int64_t kWords = Gather<W>::kWords;
    const int64_t words = row_bytes / static_cast<int64_t>(sizeof(W)), rows = std::max<int64_t>(1, kWords / words);
    const int64_t pieces = (words + kWords - 1) / kWords;
    launch(Gather<W>{static_cast<const W*>(particles), ancestors, static_cast<W*>(out), m, words, in_place, status,
                     rows, pieces},
           (m + rows - 1) / rows * pieces, stream);
  };
  const auto bits =
      static_cast<uintptr_t>(row_bytes) | reinterpret_cast<uintptr_t>(particles) | reinterpret_cast<uintptr_t>(out);
  if (bits % 16 == 0) return move(Word16{});
  if (bits % 8 == 0) return move(uint64_t{});
  if (bits % 4 == 0) return move(uint32_t{});
  if (bits % 2 == 0) return move(uint16_t{});
  move(uint8_t{});
}

}  // namespace fastsmc::cuda
