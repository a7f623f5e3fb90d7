// Ancestors from weights and uniform numbers.
//
// All schemes are one pipeline: masses of the weights (common/fixed_scan.h), how many samples have an ancestor of at
// most i, and from these cumulative counts the ancestors, for which every slot searches. A comb's cumulative counts are
// a function of the prefix sums of masses. Independent draws search the prefix sums, unsorted, and are counted by
// integer atomics, whose order does not matter; residual resampling counts its copies first and draws by the
// remainders.
//
// Up to kAlone particles and samples one block does all of it, in registers and shared memory: a read of the weights,
// and a write of the ancestors. Longer rows are cut (cuda/resample_parts.h).
#pragma once

#include <cmath>

#include "common/resampling.h"
#include "common/weight_exp.h"
#include "cuda/ops.h"
#include "cuda/rows.h"

namespace fastsmc::cuda {

FASTSMC_HD constexpr bool draws(Scheme scheme) {
  return scheme == Scheme::kMultinomial || scheme == Scheme::kResidual;
}

// Weights of rows [rows, n], or their logarithms.
template <class T>
struct Values {
  const T* data;
  int64_t n;
  bool log;
  int64_t* status;

  FASTSMC_HD double none() const { return log ? -HUGE_VAL : 0.; }
  FASTSMC_HD bool bad(double x) const { return !(x < HUGE_VAL) || (!log && x < 0); }
  // In float64, -0 as +0; none beyond the end, and where there is no weight.
  FASTSMC_HD double entry(int64_t row, int64_t i) const {
    const double x = i < n ? static_cast<double>(data[row * n + i]) : none();
    return bad(x) ? none() : x + 0.;
  }
  FASTSMC_KERNEL void check(int64_t row, int64_t i) const {
    if (i < n && bad(static_cast<double>(data[row * n + i])))
      report(status, log ? Fault::kLogWeight : Fault::kWeight, row * n + i);
  }
  FASTSMC_KERNEL void report_empty(int64_t row) const {
    report(status, log ? Fault::kNoLogWeight : Fault::kNoWeight, row * n);
  }
  FASTSMC_HD int first_scale(double largest) const { return fixed::safe_scale(log ? 1. : largest, n); }
  FASTSMC_HD uint64_t mass(double x, double largest, int scale) const {
    const double w = log ? exp64<uint64_t, ExpTable>(x - largest) : x * (fixed::lift_of(scale) == 0 ? 1. : 0x1p200);
    uint64_t distance;
    return fixed::quantise<fixed::Shift>(bit_cast<uint64_t>(w), scale, distance);
  }
};

static_assert(fixed::kLift == 200, "weights are lifted as quantise expects them");

// The uniform numbers of rows, which are checked where they are read first.
struct Numbers {
  Uniforms u;
  int64_t of_row;  // so many
  int64_t* status;

  FASTSMC_KERNEL void check(int64_t row, int64_t j) const {
    if (!u.valid(row * of_row + j)) report(status, Fault::kUniform, row * of_row + j);
  }
  FASTSMC_HD uint64_t bits(int64_t row, int64_t j) const {
    const int64_t at = row * of_row + j;
    return u.valid(at) ? u.bits(at) : 0;
  }
};

inline Numbers numbers_of(Uniforms u, Scheme scheme, int64_t m, int64_t* status) {
  return {u, scheme == Scheme::kSystematic ? 1 : m, status};
}

// How many positions of a row's comb lie below a prefix sum.
struct Comb {
  Numbers numbers;
  int64_t row;
  bool systematic;
  fixed::Share share;
  uint64_t offset;  // of a systematic one

  FASTSMC_HD int32_t below(uint64_t c) const {
    const fixed::Division d = fixed::divide(c, share);
    uint64_t tooth = offset;
    if (!systematic && d.remainder > 0) tooth = fixed::offset(numbers.bits(row, d.quotient), share.total);
    return static_cast<int32_t>(d.quotient + (tooth < d.remainder));
  }
};

FASTSMC_HD inline Comb comb_of(const Numbers& numbers, int64_t row, Scheme scheme, uint64_t total, int64_t samples) {
  const bool systematic = scheme == Scheme::kSystematic;
  const uint64_t offset = systematic ? fixed::offset(numbers.bits(row, 0), total) : 0;
  return {numbers, row, systematic, fixed::share(total, samples), offset};
}

// Of remainders, which sum to R T for R draws: a shift by the bit length of R brings that below T.
FASTSMC_HD inline int remainder_shift(int64_t drawn) {
  return fixed::bit_length(static_cast<uint64_t>(drawn));
}

// The slots of a row from `begin` to `end`, as far as one tile goes; the threads of a block stand side by side.
template <int kThreads, int kItems>
struct Slots {
  int64_t row, begin, end;

  FASTSMC_HD int64_t slot(int thread, int k) const { return begin + side_by_side<kThreads>(thread, k); }

  // Counts the ancestors of independent positions in the prefix sums of a row.
  FASTSMC_KERNEL void draw(int thread, const Numbers& numbers, const uint64_t* sums, int64_t n, int32_t* counts) const {
    Items<uint64_t, kItems> positions{};
    FASTSMC_UNROLL
    for (int k = 0; k < kItems; ++k)
      if (slot(thread, k) < end) positions[k] = fixed::offset(numbers.bits(row, slot(thread, k)), sums[n - 1]);
    const Items<int32_t, kItems> found = search(sums, n, positions);
    FASTSMC_UNROLL
    for (int k = 0; k < kItems; ++k)
      if (slot(thread, k) < end && found[k] < n) atomic_add(counts + found[k], 1);
  }

  // Ancestors by cumulative counts.
  FASTSMC_KERNEL void place(int thread, const int32_t* counts, int64_t n, int64_t* ancestors) const {
    Items<int32_t, kItems> slots;
    FASTSMC_UNROLL
    for (int k = 0; k < kItems; ++k) slots[k] = static_cast<int32_t>(slot(thread, k));
    const Items<int32_t, kItems> found = search(counts, n, slots);
    FASTSMC_UNROLL
    for (int k = 0; k < kItems; ++k)
      if (slot(thread, k) < end) ancestors[slot(thread, k)] = found[k];
  }
};

// Cumulative counts of a row that one block takes whole.
template <class T, int kThreads, int kItems>
struct RowCounts {
  Values<T> values;
  Numbers numbers;
  Scheme scheme;
  int64_t m;
  static constexpr int64_t kLongest = int64_t{kThreads} * kItems;

  template <class Block>
  FASTSMC_KERNEL void check_numbers(Block& block) const {
    block.each([&](int thread) {
      for (int j = thread; j < numbers.of_row; j += kThreads) numbers.check(block.index(), j);
    });
  }

  // Into counts [n], with room for sums [n] where the scheme draws, in shared memory; false if there are no weights.
  template <class Block>
  FASTSMC_KERNEL bool compute(Block& block, int32_t* counts, uint64_t* sums, void* scratch) const {
    const int64_t row = block.index(), n = values.n;
    typename Block::template Private<Items<double, kItems>> x;
    typename Block::template Private<Items<uint64_t, kItems>> masses;
    typename Block::template Private<double> top;
    block.each([&](int thread) { top[thread] = values.none(); });
    for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
      values.check(row, i);
      x[thread][k] = values.entry(row, i);
      top[thread] = Largest{}(top[thread], x[thread][k]);
    });
    check_numbers(block);
    const double largest = reduce(block, top, values.none(), Largest{}, scratch);
    if (largest == values.none()) {
      block.each([&](int thread) {
        if (thread == 0) values.report_empty(row);
      });
      return false;
    }
    const auto sum_at = [&](int scale) {
      typename Block::template Private<uint64_t> sum;
      block.each([&](int thread) { sum[thread] = 0; });
      for_tile<kItems>(block, 0, [&](int thread, int k, int) {
        sum[thread] += masses[thread][k] = values.mass(x[thread][k], largest, scale);
      });
      return reduce(block, sum, uint64_t{0}, Sum{}, scratch);
    };
    int scale = values.first_scale(largest);
    scale = fixed::refined_scale({sum_at(scale), 0, true}, scale, n);
    if (sum_at(scale) >= fixed::kLimit)
      for_tile<kItems>(block, 0, [&](int thread, int k, int) { masses[thread][k] >>= 1; });
    if (draws(scheme)) {
      count_draws(block, row, masses, counts, sums, scratch);
    } else {
      const uint64_t total = scan_tile(block, masses, scratch);
      const Comb comb = comb_of(numbers, row, scheme, total, m);
      for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
        if (i < n) counts[i] = comb.below(masses[thread][k]);
      });
    }
    block.sync();
    return true;
  }

  // Of copies and of draws.
  template <class Block, class Masses>
  FASTSMC_KERNEL void count_draws(Block& block, int64_t row, Masses& masses, int32_t* counts, uint64_t* sums,
                                  void* scratch) const {
    const int64_t n = values.n;
    int64_t drawn = m;
    if (scheme == Scheme::kResidual) {
      typename Block::template Private<uint64_t> sum;
      block.each([&](int thread) { sum[thread] = 0; });
      for_tile<kItems>(block, 0, [&](int thread, int k, int) { sum[thread] += masses[thread][k]; });
      const fixed::Share share = fixed::share(reduce(block, sum, uint64_t{0}, Sum{}, scratch), m);
      block.each([&](int thread) { sum[thread] = 0; });
      for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
        const fixed::Division d = fixed::divide(masses[thread][k], share);
        masses[thread][k] = d.remainder;
        sum[thread] += static_cast<uint64_t>(d.quotient);
        if (i < n) counts[i] = static_cast<int32_t>(d.quotient);
      });
      drawn -= static_cast<int64_t>(reduce(block, sum, uint64_t{0}, Sum{}, scratch));
      const int shift = remainder_shift(drawn);
      for_tile<kItems>(block, 0, [&](int thread, int k, int) { masses[thread][k] >>= shift; });
    } else {
      for_tile<kItems>(block, 0, [&](int, int, int i) {
        if (i < n) counts[i] = 0;
      });
    }
    scan_tile(block, masses, scratch);
    for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
      if (i < n) sums[i] = masses[thread][k];
    });
    block.sync();
    const Slots<kThreads, kItems> slots{row, 0, drawn};
    block.each([&](int thread) { slots.draw(thread, numbers, sums, n, counts); });
    block.sync();
    typename Block::template Private<Items<int32_t, kItems>> below;
    for_tile<kItems>(block, 0, [&](int thread, int k, int i) { below[thread][k] = i < n ? counts[i] : 0; });
    scan_tile(block, below, scratch);
    for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
      if (i < n) counts[i] = below[thread][k];
    });
  }
};

template <class T, int kRowThreads, int kItems>
struct ResampleRow {
  RowCounts<T, kRowThreads, kItems> of_row;
  int64_t* ancestors;  // [rows, m]
  static constexpr int kThreads = kRowThreads;

  size_t shared_bytes() const {
    const int64_t n = of_row.values.n;
    return kScratch + shared_size<int32_t>(n) + (draws(of_row.scheme) ? shared_size<uint64_t>(n) : 0);
  }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t n = of_row.values.n, m = of_row.m;
    void* const scratch = take_scratch(block);
    auto* const counts = block.template shared<int32_t>(n);
    uint64_t* const room = draws(of_row.scheme) ? block.template shared<uint64_t>(n) : nullptr;
    if (!of_row.compute(block, counts, room, scratch)) return;
    const Slots<kThreads, kItems> slots{block.index(), 0, m};
    block.each([&](int thread) { slots.place(thread, counts, n, ancestors + block.index() * m); });
  }
};

// The launches up to the cumulative counts of rows that are cut, [rows, n] in scratch memory: resample_parts.cu.
template <class T>
int32_t* cumulative_counts(const Queue&, Scheme, const Parts& parts, const Parts& slots, const Values<T>&,
                           const Numbers&);

struct Place {
  Numbers numbers;
  Parts slots;
  const int32_t* counts;  // [rows, n], cumulative
  int64_t n;
  int64_t* ancestors;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = slots.row(block.index());
    slots.for_tiles(block.index(), [&](int64_t begin) {
      const Slots<kThreads, kPartItems> tile{row, begin, slots.n};
      block.each([&](int thread) {
        for (int k = 0; k < kPartItems; ++k)
          if (tile.slot(thread, k) < numbers.of_row) numbers.check(row, tile.slot(thread, k));
        tile.place(thread, counts + row * n, n, ancestors + row * slots.n);
      });
    });
  }
};

}  // namespace fastsmc::cuda
