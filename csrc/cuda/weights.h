// Log weights to weights, log-sum and effective sample size.
//
// Sums have the order of csrc/cpu/weights.cpp, and so its bits: rows go by groups of 2048 entries, each relative to its
// own largest one; 8 lanes through a group, then lanes, then groups. A lane is a chain of 256 additions, for a thread;
// a group has 16 of them, with those of the squares.
//
// A row of up to two groups is the work of one block: a read and a write. A longer one takes three launches: sums of
// groups; their sum, by one block for each row; weights. That is two reads and a write, and exponentials twice.
#pragma once

#include <cfloat>
#include <cmath>

#include "common/weight_exp.h"
#include "cuda/ops.h"
#include "cuda/rows.h"

namespace fastsmc::cuda {

constexpr int64_t kGroup = 2048;
constexpr int kLanes = 8;
constexpr int kGroupThreads = 256;
constexpr int kGroupItems = static_cast<int>(kGroup) / kGroupThreads;

FASTSMC_HD inline double exponential(double x) {
  return exp64<uint64_t, ExpTable>(x);
}

// Of a group relative to its largest entry, which is -inf where all are: then the sums are zero.
struct GroupSums {
  double largest, total, squares;
};

template <class T>
struct LogWeights {
  const T* data;  // [rows, n]
  int64_t rows, n;
  int64_t* status;

  FASTSMC_HD int64_t groups() const { return (n + kGroup - 1) / kGroup; }  // of a row

  // In float64; -inf beyond the end, and where there is no log weight.
  FASTSMC_HD double entry(int64_t row, int64_t i) const {
    const double x = i < n ? static_cast<double>(data[row * n + i]) : -HUGE_VAL;
    return x < HUGE_VAL ? x : -HUGE_VAL;
  }
  FASTSMC_KERNEL void check(int64_t row, int64_t i) const {
    if (i < n && !(data[row * n + i] < HUGE_VAL)) report(status, Fault::kLogWeight, row * n + i);
  }
};

// What would be subnormal becomes zero.
template <class T>
FASTSMC_HD inline T rounded(double w) {
  return static_cast<T>(w < (sizeof(T) == sizeof(float) ? FLT_MIN : DBL_MIN) ? 0. : w);
}

// The sums of a row as they grow, group by group, relative to its largest entry.
struct RowSums {
  double largest = -HUGE_VAL, total = 0, squares = 0;

  // Of what is relative to a group's largest entry.
  FASTSMC_HD double factor(double largest_of_group) const {
    return exponential(largest_of_group - Largest{}(largest, -DBL_MAX));
  }
  FASTSMC_HD void add(double factor, double group_total, double group_squares) {
    total += factor * group_total;
    squares += factor * factor * group_squares;
  }
  FASTSMC_HD double log_sum() const { return largest + log(total); }
  FASTSMC_HD double ess() const { return total * total / squares; }
};

// Exponentials of groups of one row, and their sums; a thread keeps those of its kGroupItems entries.
template <class T, int kGroups>
struct GroupExponentials {
  static constexpr int kChains = 2 * kLanes;
  static size_t shared_bytes() {
    return kScratch + shared_size<double>(kGroups * kGroup) + shared_size<double>(kGroups * kChains);
  }
  FASTSMC_HD static int64_t place(int thread, int k) {  // in the groups, side by side for the threads of a warp
    return thread / kGroupThreads * kGroup + k * kGroupThreads + thread % kGroupThreads;
  }

  // That of a thread's group: an index would keep both in memory.
  FASTSMC_HD static double own(int thread, double first, double last) { return thread < kGroupThreads ? first : last; }

  GroupSums sums[kGroups];

  FASTSMC_HD RowSums of_row() const {
    RowSums row;
    FASTSMC_UNROLL
    for (int g = 0; g < kGroups; ++g) row.largest = Largest{}(row.largest, sums[g].largest);
    FASTSMC_UNROLL
    for (int g = 0; g < kGroups; ++g) row.add(row.factor(sums[g].largest), sums[g].total, sums[g].squares);
    return row;
  }
  static_assert(kGroups <= 2, "a thread's group is the first or the last");

  template <class Block, template <class> class Private>
  FASTSMC_KERNEL void compute(Block& block, const LogWeights<T>& from, int64_t row, int64_t first,
                              Private<Items<double, kGroupItems>>& e, void* scratch) {
    constexpr int kWarps = kGroupThreads / kWarp;
    auto* const of_warps = static_cast<double*>(scratch);
    auto* const entries = block.template shared<double>(kGroups * kGroup);
    auto* const chains = block.template shared<double>(kGroups * kChains);
    Private<double> top;
    block.each([&](int thread) {
      top[thread] = -HUGE_VAL;
      FASTSMC_UNROLL
      for (int k = 0; k < kGroupItems; ++k) {
        const int64_t i = first + place(thread, k);
        from.check(row, i);
        e[thread][k] = from.entry(row, i);
        top[thread] = Largest{}(top[thread], e[thread][k]);
      }
    });
    top = reduce_warps(block, top, Largest{});
    block.each([&](int thread) {
      if (thread % kWarp == 0) of_warps[thread / kWarp] = top[thread];
    });
    block.sync();
    FASTSMC_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      sums[g].largest = -HUGE_VAL;
      for (int w = 0; w < kWarps; ++w) sums[g].largest = Largest{}(sums[g].largest, of_warps[g * kWarps + w]);
    }
    block.each([&](int thread) {
      const double largest = own(thread, sums[0].largest, sums[kGroups - 1].largest);
      FASTSMC_UNROLL
      for (int k = 0; k < kGroupItems; ++k) {
        e[thread][k] = exponential(e[thread][k] - Largest{}(largest, -DBL_MAX));
        entries[place(thread, k)] = e[thread][k];
      }
    });
    block.sync();
    block.each([&](int thread) {
      if (thread >= kGroups * kChains) return;
      const double* const lane = entries + thread / kChains * kGroup + thread % kLanes;
      const bool squared = thread % kChains >= kLanes;
      double sum = 0;
      for (int64_t i = 0; i < kGroup; i += kLanes) sum += lane[i] * (squared ? lane[i] : 1.);
      chains[thread] = sum;
    });
    block.sync();
    FASTSMC_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      sums[g].total = sums[g].squares = 0;
      for (int k = 0; k < kLanes; ++k) {
        sums[g].total += chains[g * kChains + k];
        sums[g].squares += chains[g * kChains + kLanes + k];
      }
    }
  }
};

template <class T>
struct Results {
  T* weights;  // [rows, n]
  T *log_sum, *ess;
  RowSums* sums;  // for later launches; null where there are none

  FASTSMC_HD void finish(int64_t row, const RowSums& of_row) const {
    log_sum[row] = static_cast<T>(of_row.log_sum());
    ess[row] = static_cast<T>(of_row.ess());
    if (sums != nullptr) sums[row] = of_row;
  }
};

template <class T, int kGroups>
struct NormalizeRow {
  LogWeights<T> from;
  Results<T> to;
  static constexpr int kThreads = kGroups * kGroupThreads;
  size_t shared_bytes() const { return GroupExponentials<T, kGroups>::shared_bytes(); }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = block.index();
    typename Block::template Private<Items<double, kGroupItems>> e;
    GroupExponentials<T, kGroups> groups;
    groups.compute(block, from, row, 0, e, take_scratch(block));
    const RowSums sums = groups.of_row();
    block.each([&](int thread) {
      const double of_group = groups.own(thread, groups.sums[0].largest, groups.sums[kGroups - 1].largest);
      const double factor = sums.factor(of_group) / sums.total;
      FASTSMC_UNROLL
      for (int k = 0; k < kGroupItems; ++k) {
        const int64_t i = GroupExponentials<T, kGroups>::place(thread, k);
        const T kept = rounded<T>(e[thread][k]);
        if (i < from.n) to.weights[row * from.n + i] = rounded<T>(static_cast<double>(kept) * factor);
      }
      if (thread > 0) return;
      if (sums.largest == -HUGE_VAL) report(from.status, Fault::kNoLogWeight, row * from.n);
      to.finish(row, sums);
    });
  }
};

template <class T>
struct SumGroups {
  LogWeights<T> from;
  GroupSums* sums;  // [rows, groups]
  static constexpr int kThreads = kGroupThreads;
  size_t shared_bytes() const { return GroupExponentials<T, 1>::shared_bytes(); }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    typename Block::template Private<Items<double, kGroupItems>> e;
    GroupExponentials<T, 1> group;
    const int64_t row = block.index() / from.groups(), first = block.index() % from.groups() * kGroup;
    group.compute(block, from, row, first, e, take_scratch(block));
    block.each([&](int thread) {
      if (thread == 0) sums[block.index()] = group.sums[0];
    });
  }
};

// The sum of a row is a chain that every thread adds, of what they bring to shared memory together; a group's `total`
// becomes the factor of its weights.
template <class T>
struct SumRow {
  LogWeights<T> from;
  GroupSums* sums;
  Results<T> to;
  static constexpr int kThreads = 256;
  size_t shared_bytes() const { return kScratch + 3 * shared_size<double>(kThreads); }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = block.index(), groups = from.groups();
    GroupSums* const of_row = sums + row * groups;
    void* const scratch = take_scratch(block);
    auto* const factors = block.template shared<double>(kThreads);
    auto* const totals = block.template shared<double>(kThreads);
    auto* const squares = block.template shared<double>(kThreads);
    typename Block::template Private<double> top;
    block.each([&](int thread) {
      top[thread] = -HUGE_VAL;
      for (int64_t g = thread; g < groups; g += kThreads) top[thread] = Largest{}(top[thread], of_row[g].largest);
    });
    RowSums sum;
    sum.largest = reduce(block, top, -HUGE_VAL, Largest{}, scratch);
    for (int64_t begin = 0; begin < groups; begin += kThreads) {
      block.sync();
      block.each([&](int thread) {
        const int64_t g = begin + thread;
        if (g >= groups) return;
        factors[thread] = sum.factor(of_row[g].largest);
        totals[thread] = of_row[g].total;
        squares[thread] = of_row[g].squares;
      });
      block.sync();
      for (int64_t k = 0; k < kThreads && begin + k < groups; ++k) sum.add(factors[k], totals[k], squares[k]);
    }
    block.each([&](int thread) {
      for (int64_t g = thread; g < groups; g += kThreads) of_row[g].total = sum.factor(of_row[g].largest) / sum.total;
      if (thread > 0) return;
      if (sum.largest == -HUGE_VAL) report(from.status, Fault::kNoLogWeight, row * from.n);
      to.finish(row, sum);
    });
  }
};

template <class T>
struct ScaleGroups {
  LogWeights<T> from;
  const GroupSums* sums;
  T* weights;
  static constexpr int kThreads = kGroupThreads;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = block.index() / from.groups(), first = block.index() % from.groups() * kGroup;
    const GroupSums& group = sums[block.index()];
    block.each([&](int thread) {
      FASTSMC_UNROLL
      for (int k = 0; k < kGroupItems; ++k) {
        const int64_t i = first + GroupExponentials<T, 1>::place(thread, k);
        if (i >= from.n) continue;
        const T kept = rounded<T>(exponential(from.entry(row, i) - Largest{}(group.largest, -DBL_MAX)));
        weights[row * from.n + i] = rounded<T>(static_cast<double>(kept) * group.total);
      }
    });
  }
};

// The launches that end in the sums of rows; returns those of groups, with the factors of their weights: weights.cu.
template <class T>
const GroupSums* sum_rows(const Queue&, const LogWeights<T>& from, const Results<T>& to);

}  // namespace fastsmc::cuda
