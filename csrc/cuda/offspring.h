// Counts of ancestors, and ancestors in an order in which particles can be gathered in place.
//
// Counts are integer atomics, whose order does not matter. The permutation gives every survivor its own slot, and the
// k-th vacant slot the k-th further copy: one prefix sum counts both, and vacant slots search it. A row of up to kAlone
// is the work of one block, in shared memory: a read and a write. Longer rows are counted in memory, and permuted by
// four launches.
#pragma once

#include "cuda/ops.h"
#include "cuda/scan.h"

namespace fastsmc::cuda {

// Further copies of a particle in the upper half, its slot if vacant in the lower one: one sum counts both.
FASTSMC_HD inline uint64_t vacancy(int64_t count) {
  return static_cast<uint64_t>(count > 1 ? count - 1 : 0) << 32 | (count == 0);
}

// What the slots of a thread take, from the counts and the inclusive prefix sums of vacancies of a row [n].
template <int kThreads, int kItems, class Count>
FASTSMC_KERNEL void fill_slots(int thread, int64_t begin, const Count* counts, const uint64_t* vacancies, int64_t n,
                               int64_t* permuted) {
  Items<uint64_t, kItems> keys{};  // of vacant slots: the sum below that of the copy which they take
  FASTSMC_UNROLL
  for (int k = 0; k < kItems; ++k) {
    const int64_t slot = begin + side_by_side<kThreads>(thread, k);
    if (slot < n && counts[slot] == 0) keys[k] = ((vacancies[slot] & 0xFFFFFFFFu) << 32) - 1;
  }
  const Items<int32_t, kItems> found = search(vacancies, n, keys);
  FASTSMC_UNROLL
  for (int k = 0; k < kItems; ++k) {
    const int64_t slot = begin + side_by_side<kThreads>(thread, k);
    if (slot < n) permuted[slot] = keys[k] > 0 ? found[k] : slot;
  }
}

struct Ancestors {
  const int64_t* data;  // [rows, m], in [0, n)
  int64_t m, n;
  int64_t* status;

  template <class Count>
  FASTSMC_KERNEL void count(int64_t row, int64_t slot, Count* counts) const {
    const int64_t ancestor = data[row * m + slot];
    if (ancestor < 0 || ancestor >= n)
      report(status, Fault::kAncestor, row * m + slot);
    else
      atomic_add(counts + ancestor, Count{1});
  }

  // Of a row that one block takes whole, in its shared memory.
  template <class Block>
  FASTSMC_KERNEL int32_t* count_row(Block& block) const {
    auto* const counts = block.template shared<int32_t>(n);
    block.each([&](int thread) {
      for (int i = thread; i < n; i += Block::kThreads) counts[i] = 0;
    });
    block.sync();
    block.each([&](int thread) {
      for (int slot = thread; slot < m; slot += Block::kThreads) count(block.index(), slot, counts);
    });
    block.sync();
    return counts;
  }
};

struct CountRow {
  Ancestors ancestors;
  int64_t* counts;  // [rows, n]
  static constexpr int kThreads = 256;
  size_t shared_bytes() const { return shared_size<int32_t>(ancestors.n); }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int32_t* const counted = ancestors.count_row(block);
    block.each([&](int thread) {
      for (int i = thread; i < ancestors.n; i += kThreads) counts[block.index() * ancestors.n + i] = counted[i];
    });
  }
};

// Into counts that are zero.
template <class Count>
struct CountParts {
  Ancestors ancestors;
  Parts slots;
  Count* counts;  // [rows, n]
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = slots.row(block.index());
    slots.for_tiles(block.index(), [&](int64_t begin) {
      block.each([&](int thread) {
        for (int64_t slot = begin + thread; slot < begin + kTile && slot < slots.n; slot += kThreads)
          ancestors.count(row, slot, counts + row * ancestors.n);
      });
    });
  }
};

// The same of a row that one block takes whole: counts [n], and room for vacancies [n], are in its shared memory.
template <int kThreads, int kItems, class Block>
FASTSMC_KERNEL void fill_row(Block& block, const int32_t* counts, uint64_t* vacancies, int64_t n, int64_t* permuted,
                             void* scratch) {
  typename Block::template Private<Items<uint64_t, kItems>> entries;
  for_tile<kItems>(block, 0, [&](int thread, int k, int i) { entries[thread][k] = i < n ? vacancy(counts[i]) : 0; });
  scan_tile(block, entries, scratch);
  for_tile<kItems>(block, 0, [&](int thread, int k, int i) {
    if (i < n) vacancies[i] = entries[thread][k];
  });
  block.sync();
  block.each([&](int thread) { fill_slots<kThreads, kItems>(thread, 0, counts, vacancies, n, permuted); });
}

struct PermuteRow {
  Ancestors ancestors;
  int64_t* permuted;
  static constexpr int kThreads = 512, kItems = 8;
  static_assert(kThreads * kItems == kAlone, "one block takes what rows.h says");
  size_t shared_bytes() const {
    return kScratch + shared_size<int32_t>(ancestors.n) + shared_size<uint64_t>(ancestors.n);
  }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t n = ancestors.n;
    void* const scratch = take_scratch(block);
    const int32_t* const counts = ancestors.count_row(block);
    auto* const vacancies = block.template shared<uint64_t>(n);
    fill_row<kThreads, kItems>(block, counts, vacancies, n, permuted + block.index() * n, scratch);
  }
};

// To be summed along rows.
template <class Count>
struct Vacancies {
  const Count* counts;
  uint64_t* sums;
  struct Nothing {};
  template <class Block>
  FASTSMC_KERNEL Nothing prepare(Block&, int64_t, void*) const {
    return {};
  }
  FASTSMC_HD uint64_t entry(Nothing, int64_t at) const { return vacancy(counts[at]); }
  FASTSMC_HD void store(int64_t at, uint64_t sum) const { sums[at] = sum; }
};

template <class Count>
struct FillVacancies {
  Parts slots;
  const Count* counts;
  const uint64_t* vacancies;
  int64_t* permuted;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t row = slots.row(block.index()) * slots.n;
    slots.for_tiles(block.index(), [&](int64_t begin) {
      block.each([&](int thread) {
        fill_slots<kThreads, kPartItems>(thread, begin, counts + row, vacancies + row, slots.n, permuted + row);
      });
    });
  }
};

// Ancestors in place from the counts of offspring [rows, n]: offspring.cu.
template <class Count>
void permute_by_counts(const Queue&, const Parts&, const Count* counts, int64_t* permuted);

}  // namespace fastsmc::cuda
