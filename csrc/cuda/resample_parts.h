// Ancestors in rows that are cut, by a launch for each step: the largest weight, sums of masses at the safe scale and
// at the refined one, cumulative counts, ancestors. That is four reads of the weights, a write and a read of int32
// counts, and a write of the ancestors. Draws add a launch for themselves and two for the prefix sums of their counts;
// the remainders' prefix sums take two more.
//
// How often the scale must be refined. Let W be the exact sum of n <= 2^L weights and S(s) that of their masses at
// scale s: W 2^s - n < S(s) <= W 2^s.
//   - At the safe scale s the largest weight alone has a mass of at least 2^(60 - L), and S(s) < 2^61.
//   - With b = bit_length(S(s) + n), the refined scale is t = s + 62 - b. W 2^(t - 1) < 2^61: at t - 1 the limit is not
//     reached, and at t nothing wraps.
//   - S(t + 1) > W 2^(t + 1) - n >= (2^(b - 1) - n) 2^(63 - b) - n = 2^62 - n 2^(63 - b) - n. For L <= 28, b >= 61 - L
//     makes this at least 2^62 - 2^(2 + 2 L) - 2^L > 3 2^60: the limit is reached at t + 1. So f is t or t - 1,
//     whichever the sums at t say.
//   - For L <= 31, S(t) >= 2^57 whatever b was, and a second refinement, with b >= 58, proves f likewise.
// So the number of launches depends on n alone: none waits for what a device found.
#pragma once

#include "cuda/resample.h"
#include "cuda/scan.h"

namespace fastsmc::cuda {

// At the safe scale and at refined ones.
constexpr int passes_for(int64_t n) {
  return n <= int64_t{1} << 28 ? 2 : 3;
}

// What the launches of rows that are cut leave for each other.
template <class T>
struct LongRows {
  Values<T> values;
  Numbers numbers;
  Scheme scheme;
  int64_t m;
  Parts parts;
  double* largest;           // [rows, parts]
  uint64_t *fine, *coarse;   // [passes, rows, parts], sums of masses at the scale of a pass and at the next coarser one
  uint64_t* sums;            // [rows, n], of masses to draw by
  int32_t* counts;           // [rows, n]
  uint64_t *copies, *drawn;  // [rows, parts], counts of residual copies; what scan_rows leaves

  FASTSMC_HD uint64_t* of_pass(uint64_t* all, int pass, int64_t row) const {
    return all + (pass * parts.rows + row) * parts.parts;
  }

  template <class Block>
  FASTSMC_KERNEL double largest_of(Block& block, int64_t row, void* scratch) const {
    return reduce_parts(block, largest + row * parts.parts, parts.parts, values.none(), Largest{}, scratch);
  }

  template <class Block>
  FASTSMC_KERNEL uint64_t sum_parts(Block& block, const uint64_t* left, void* scratch) const {
    return reduce_parts(block, left, parts.parts, uint64_t{0}, Sum{}, scratch);
  }

  // The scale of a pass, from the sums of those before it.
  template <class Block>
  FASTSMC_KERNEL int scale_of(Block& block, int64_t row, int pass, double top, void* scratch) const {
    int scale = values.first_scale(top);
    for (int k = 0; k < pass; ++k)
      scale = fixed::refined_scale({sum_parts(block, of_pass(fine, k, row), scratch), 0, true}, scale, values.n);
    return scale;
  }

  // How many samples are drawn, not copied; none of a row without weights, whose copies are arbitrary.
  template <class Block>
  FASTSMC_KERNEL int64_t draws_of(Block& block, int64_t row, void* scratch) const {
    if (scheme != Scheme::kResidual) return m;
    const uint64_t copied = sum_parts(block, copies + row * parts.parts, scratch);
    return copied < static_cast<uint64_t>(m) ? m - static_cast<int64_t>(copied) : 0;
  }
};

template <class T>
struct FindLargest {
  LongRows<T> rows;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return kScratch; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const int64_t row = rows.parts.row(block.index());
    typename Block::template Private<double> top;
    block.each([&](int thread) { top[thread] = rows.values.none(); });
    rows.parts.for_tiles(block.index(), [&](int64_t begin) {
      for_tile<kPartItems>(block, begin, [&](int thread, int, int64_t i) {
        rows.values.check(row, i);
        top[thread] = Largest{}(top[thread], rows.values.entry(row, i));
      });
    });
    const double largest = reduce(block, top, rows.values.none(), Largest{}, scratch);
    block.each([&](int thread) {
      if (thread == 0) rows.largest[block.index()] = largest;
    });
  }
};

template <class T>
struct SumMasses {
  LongRows<T> rows;
  int pass;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return kScratch; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const int64_t row = rows.parts.row(block.index()), part = rows.parts.part(block.index());
    const double top = rows.largest_of(block, row, scratch);
    const int scale = rows.scale_of(block, row, pass, top, scratch);
    typename Block::template Private<uint64_t> fine, coarse;
    block.each([&](int thread) { fine[thread] = coarse[thread] = 0; });
    rows.parts.for_tiles(block.index(), [&](int64_t begin) {
      for_tile<kPartItems>(block, begin, [&](int thread, int, int64_t i) {
        const uint64_t mass = rows.values.mass(rows.values.entry(row, i), top, scale);
        fine[thread] += mass;
        coarse[thread] += mass >> 1;
      });
    });
    const uint64_t all = reduce(block, fine, uint64_t{0}, Sum{}, scratch);
    const uint64_t half = reduce(block, coarse, uint64_t{0}, Sum{}, scratch);
    block.each([&](int thread) {
      if (thread > 0) return;
      rows.of_pass(rows.fine, pass, row)[part] = all;
      rows.of_pass(rows.coarse, pass, row)[part] = half;
      if (pass == 0 && part == 0 && top == rows.values.none()) rows.values.report_empty(row);
    });
  }
};

// Combs: counts become cumulative counts. Multinomial: sums become the prefix sums, counts zero. Residual: counts
// become the numbers of copies, sums the remainders.
template <class T>
struct Cumulate {
  LongRows<T> rows;
  int pass;  // the last
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return kScratch; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const int64_t row = rows.parts.row(block.index()), part = rows.parts.part(block.index()), n = rows.values.n;
    const double top = rows.largest_of(block, row, scratch);
    int scale = rows.scale_of(block, row, pass, top, scratch);
    const uint64_t* left = rows.of_pass(rows.fine, pass, row);
    uint64_t total = rows.sum_parts(block, left, scratch);
    if (total >= fixed::kLimit) {
      --scale;
      left = rows.of_pass(rows.coarse, pass, row);
      total = rows.sum_parts(block, left, scratch);
    }
    uint64_t before = reduce_parts(block, left, part, uint64_t{0}, Sum{}, scratch);
    const Comb comb = comb_of(rows.numbers, row, rows.scheme, total, rows.m);
    typename Block::template Private<Items<uint64_t, kPartItems>> masses;
    typename Block::template Private<uint64_t> copied;
    block.each([&](int thread) { copied[thread] = 0; });
    rows.parts.for_tiles(block.index(), [&](int64_t begin) {
      for_tile<kPartItems>(block, begin, [&](int thread, int k, int64_t i) {
        masses[thread][k] = rows.values.mass(rows.values.entry(row, i), top, scale);
      });
      if (rows.scheme == Scheme::kResidual) {
        for_tile<kPartItems>(block, begin, [&](int thread, int k, int64_t i) {
          if (i >= n) return;
          const fixed::Division d = fixed::divide(masses[thread][k], comb.share);
          rows.sums[row * n + i] = d.remainder;
          rows.counts[row * n + i] = static_cast<int32_t>(d.quotient);
          copied[thread] += static_cast<uint64_t>(d.quotient);
        });
        return;
      }
      const uint64_t of_tile = scan_tile(block, masses, scratch);
      for_tile<kPartItems>(block, begin, [&](int thread, int k, int64_t i) {
        if (i >= n) return;
        const uint64_t c = before + masses[thread][k];
        if (rows.scheme == Scheme::kMultinomial) {
          rows.sums[row * n + i] = c;
          rows.counts[row * n + i] = 0;
        } else {
          rows.counts[row * n + i] = comb.below(c);
        }
      });
      before += of_tile;
    });
    if (rows.scheme != Scheme::kResidual) return;
    const uint64_t copies = reduce(block, copied, uint64_t{0}, Sum{}, scratch);
    block.each([&](int thread) {
      if (thread == 0) rows.copies[block.index()] = copies;
    });
  }
};

// To be summed along rows: remainders, so that their sum is below T.
template <class T>
struct Remainders {
  LongRows<T> rows;
  template <class Block>
  FASTSMC_KERNEL int prepare(Block& block, int64_t row, void* scratch) const {
    return remainder_shift(rows.draws_of(block, row, scratch));
  }
  FASTSMC_HD uint64_t entry(int shift, int64_t at) const { return rows.sums[at] >> shift; }
  FASTSMC_HD void store(int64_t at, uint64_t sum) const { rows.sums[at] = sum; }
};

struct Counts {
  int32_t* counts;
  struct Nothing {};
  template <class Block>
  FASTSMC_KERNEL Nothing prepare(Block&, int64_t, void*) const {
    return {};
  }
  FASTSMC_HD uint64_t entry(Nothing, int64_t at) const { return static_cast<uint64_t>(counts[at]); }
  FASTSMC_HD void store(int64_t at, uint64_t sum) const { counts[at] = static_cast<int32_t>(sum); }
};

template <class T>
struct Draw {
  LongRows<T> rows;
  Parts slots;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return kScratch; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const int64_t row = slots.row(block.index()), n = rows.values.n;
    const int64_t drawn = rows.draws_of(block, row, scratch);
    slots.for_tiles(block.index(), [&](int64_t begin) {
      const Slots<kThreads, kPartItems> tile{row, begin, drawn};
      block.each([&](int thread) { tile.draw(thread, rows.numbers, rows.sums + row * n, n, rows.counts + row * n); });
    });
  }
};

}  // namespace fastsmc::cuda
