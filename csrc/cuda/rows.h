// How the work on rows is divided, and how an op says what it found wrong.
//
// A row of up to kAlone entries is the work of one block and one launch. A longer one is cut into parts of whole tiles,
// a block each. What a part needs to know of all others (the largest weight, sums) it reduces itself from what an
// earlier launch left behind: no launch is spent on that, and no sum depends on who came first.
#pragma once

#include "common/fault.h"
#include "common/fixed_scan.h"
#include "cuda/collectives.h"
#include "cuda/ops.h"

namespace fastsmc::cuda {

// What an op finds wrong goes to one word of the device, where the least stays: kFine where all is well.
constexpr int64_t kFine = int64_t{1} << 62;

FASTSMC_HD constexpr int64_t packed(Fault fault, int64_t position) {
  return (static_cast<int64_t>(fault) << 48) | position;
}

FASTSMC_KERNEL void report(int64_t* status, Fault fault, int64_t position) {
  atomic_min(status, packed(fault, position));
}

// For rows that are cut: threads of a block, and entries of a thread.
constexpr int kPartThreads = 256;
constexpr int kPartItems = 8;
constexpr int64_t kTile = kPartThreads * kPartItems;

// Rows of n in parts; block b has part b % parts of row b / parts.
struct Parts {
  int64_t rows, n, tiles, parts;

  int64_t grid() const { return rows * parts; }
  FASTSMC_HD int64_t row(int64_t block) const { return block / parts; }
  FASTSMC_HD int64_t part(int64_t block) const { return block % parts; }

  // Calls work(where the tile begins in the row) for the tiles of a block.
  template <class Work>
  FASTSMC_KERNEL void for_tiles(int64_t block, const Work& work) const {
    const int64_t first = part(block) * tiles * kTile;
    for (int64_t tile = 0; tile < tiles && first + tile * kTile < n; ++tile) work(first + tile * kTile);
  }
};

inline Parts parts_of(int64_t rows, int64_t n, int64_t most) {
  const int64_t tiles = (n + kTile * most - 1) / (kTile * most);
  return {rows, n, tiles, (n + kTile * tiles - 1) / (kTile * tiles)};
}

// What the first `count` parts of a row left behind, as one.
template <class Block, class T, class Op>
FASTSMC_KERNEL T reduce_parts(Block& block, const T* left, int64_t count, T none, Op op, void* scratch) {
  typename Block::template Private<T> own;
  block.each([&](int thread) {
    own[thread] = none;
    for (int64_t part = thread; part < count; part += Block::kThreads) own[thread] = op(own[thread], left[part]);
  });
  return reduce(block, own, none, op, scratch);
}

// Where item k of a thread is, when the threads of a block stand side by side.
template <int kThreads>
FASTSMC_HD constexpr int side_by_side(int thread, int item) {
  return item * kThreads + thread;
}

// The first entry of an ascending table [n] that is larger than each key; n if there is none. All keys take a step
// before any takes the next, without a branch: their reads do not wait for each other.
template <class T, int kKeys>
FASTSMC_HD inline Items<int32_t, kKeys> search(const T* table, int64_t n, const Items<T, kKeys>& keys) {
  const auto size = static_cast<int32_t>(n);
  Items<int32_t, kKeys> found{};
  for (int32_t step = int32_t{1} << (fixed::bit_length(static_cast<uint64_t>(n)) - 1); step > 0; step /= 2) {
    FASTSMC_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const bool inside = step <= size - found[k];
      const T entry = table[inside ? found[k] + step - 1 : 0];
      found[k] += inside & (entry <= keys[k]) ? step : 0;
    }
  }
  return found;
}

}  // namespace fastsmc::cuda
