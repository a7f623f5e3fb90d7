// A whole resampling step: log weights to ancestors in place, offspring and log weights, where the effective sample
// size is too small.
//
// A row that is kept gives every particle one child. Offspring are the differences of cumulative counts
// (cuda/resample.h), and ancestors in place follow from offspring alone (cuda/offspring.h), so that sorted ancestors
// are never made.
//
// Up to kAlone particles one block does all of it, in registers and shared memory: two reads of the log weights, the
// second from a cache, and a write of each result. Longer rows take the launches of the ops that this one is made of,
// and Settle, which decides.
#pragma once

#include "cuda/offspring.h"
#include "cuda/resample.h"
#include "cuda/weights.h"

namespace fastsmc::cuda {

// Of rows [rows, n].
template <class T>
struct Settled {
  double least;  // the effective sample size of a row that is kept, as it is returned
  T equal;       // log weight of each particle of the others
  int64_t *ancestors, *offspring;
  T* normalized;

  FASTSMC_HD bool keeps(double ess) const { return !(static_cast<double>(static_cast<T>(ess)) < least); }
};

template <class T, int kGroups>
struct AdaptRow {
  static constexpr int kThreads = kGroups * kGroupThreads, kItems = kGroupItems;
  LogWeights<T> from;
  RowCounts<T, kThreads, kItems> counts_of;
  Results<T> to;
  Settled<T> settled;
  static constexpr int64_t kLongest = decltype(counts_of)::kLongest;

  size_t shared_bytes() const {
    return GroupExponentials<T, kGroups>::shared_bytes() + shared_size<int32_t>(from.n) + shared_size<uint64_t>(from.n);
  }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = block.index(), n = from.n;
    void* const scratch = take_scratch(block);
    const RowSums sums = sum(block, row, scratch);
    block.each([&](int thread) {
      if (thread > 0) return;
      if (sums.largest == -HUGE_VAL) report(from.status, Fault::kNoLogWeight, row * n);
      to.finish(row, sums);
    });
    if (settled.keeps(sums.ess())) {
      counts_of.check_numbers(block);
      const double log_total = log(sums.total);
      for_tile<kItems>(block, 0, [&](int, int, int i) {
        if (i >= n) return;
        settled.ancestors[row * n + i] = i;
        settled.offspring[row * n + i] = 1;
        settled.normalized[row * n + i] = static_cast<T>((from.entry(row, i) - sums.largest) - log_total);
      });
      return;
    }
    auto* const counts = block.template shared<int32_t>(n);
    auto* const room = block.template shared<uint64_t>(n);
    if (!counts_of.compute(block, counts, room, scratch)) return;
    typename Block::template Private<Items<int32_t, kItems>> children;
    for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
      children[thread][k] = i < n ? counts[i] - (i > 0 ? counts[i - 1] : 0) : 0;
    });
    block.sync();
    for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
      if (i >= n) return;
      counts[i] = children[thread][k];
      settled.offspring[row * n + i] = children[thread][k];
      settled.normalized[row * n + i] = settled.equal;
    });
    block.sync();
    fill_row<kThreads, kItems>(block, counts, room, n, settled.ancestors + row * n, scratch);
  }

  template <class Block>
  FASTSMC_KERNEL RowSums sum(Block& block, int64_t row, void* scratch) const {
    typename Block::template Private<Items<double, kItems>> e;
    GroupExponentials<T, kGroups> groups;
    groups.compute(block, from, row, 0, e, scratch);
    return groups.of_row();
  }
};

// From cumulative counts.
template <class T>
struct Settle {
  Values<T> values;
  Numbers numbers;
  Parts parts;
  const int32_t* counts;
  const RowSums* of_rows;
  Settled<T> settled;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = parts.row(block.index()), n = parts.n;
    const RowSums sums = of_rows[row];
    const double log_total = log(sums.total);
    const bool kept = settled.keeps(sums.ess());
    parts.for_tiles(block.index(), [&](int64_t begin) {
      for_tile<kPartItems>(block, begin, [&](int, int, int64_t i) {
        if (i < numbers.of_row) numbers.check(row, i);
        const int64_t at = row * n + i;
        if (i < n) settled.offspring[at] = kept ? 1 : counts[at] - (i > 0 ? counts[at - 1] : 0);
      });
      for_tile<kPartItems>(block, begin, [&](int, int, int64_t i) {
        const double x = (values.entry(row, i) - sums.largest) - log_total;
        if (i < n) settled.normalized[row * n + i] = kept ? static_cast<T>(x) : settled.equal;
      });
    });
  }
};

}  // namespace fastsmc::cuda
