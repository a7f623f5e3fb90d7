// Exact prefix sums of integers along rows that are cut.
//
// Two launches: every part sums its entries; then every part adds up the sums of those before it and writes its own
// prefix sums. Three reads and writes of an entry in all.
//
// What is summed is a struct with
//   Prepared prepare(block, row, scratch)      what all entries of a row need to know
//   uint64_t entry(prepared, at)               at a place in the memory of all rows
//   void store(at, sum)
#pragma once

#include "cuda/rows.h"

namespace fastsmc::cuda {

template <class What>
struct SumParts {
  What what;
  Parts parts;
  uint64_t* sums;  // [rows, parts]
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return kScratch; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const int64_t row = parts.row(block.index());
    const auto prepared = what.prepare(block, row, scratch);
    typename Block::template Private<uint64_t> sum;
    block.each([&](int thread) { sum[thread] = 0; });
    parts.for_tiles(block.index(), [&](int64_t begin) {
      for_tile<kPartItems>(block, begin, [&](int thread, int, int64_t i) {
        if (i < parts.n) sum[thread] += what.entry(prepared, row * parts.n + i);
      });
    });
    const uint64_t total = reduce(block, sum, uint64_t{0}, Sum{}, scratch);
    block.each([&](int thread) {
      if (thread == 0) sums[block.index()] = total;
    });
  }
};

template <class What>
struct ScanParts {
  What what;
  Parts parts;
  const uint64_t* sums;
  static constexpr int kThreads = kPartThreads;
  size_t shared_bytes() const { return kScratch; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const int64_t row = parts.row(block.index());
    const auto prepared = what.prepare(block, row, scratch);
    uint64_t before =
        reduce_parts(block, sums + row * parts.parts, parts.part(block.index()), uint64_t{0}, Sum{}, scratch);
    typename Block::template Private<Items<uint64_t, kPartItems>> entries;
    parts.for_tiles(block.index(), [&](int64_t begin) {
      for_tile<kPartItems>(block, begin, [&](int thread, int k, int64_t i) {
        entries[thread][k] = i < parts.n ? what.entry(prepared, row * parts.n + i) : 0;
      });
      const uint64_t total = scan_tile(block, entries, scratch);
      for_tile<kPartItems>(block, begin, [&](int thread, int k, int64_t i) {
        if (i < parts.n) what.store(row * parts.n + i, before + entries[thread][k]);
      });
      before += total;
    });
  }
};

// Rows become their own prefix sums, with room for [rows, parts] in sums.
template <class What>
void scan_rows(const What& what, const Parts& parts, uint64_t* sums, Stream stream) {
  launch(SumParts<What>{what, parts, sums}, parts.grid(), stream);
  launch(ScanParts<What>{what, parts, sums}, parts.grid(), stream);
}

}  // namespace fastsmc::cuda
