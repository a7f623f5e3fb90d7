// Reductions and prefix sums of a block. The order in which they add depends on the number of threads alone, and is the
// same on the host, so floats have the same bits there.
//
// They need kScratch bytes of shared memory, the same for all collectives of a kernel.
#pragma once

#include "cuda/block.h"

namespace fastsmc::cuda {

constexpr int kMostWarps = 32;
constexpr size_t kScratch = shared_size<uint64_t>(kMostWarps);

struct Sum {
  template <class T>
  FASTSMC_HD T operator()(T a, T b) const {
    return a + b;
  }
};

struct Largest {
  template <class T>
  FASTSMC_HD T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

template <class Block>
FASTSMC_KERNEL void* take_scratch(Block& block) {
  return block.template shared<uint64_t>(kMostWarps);
}

// Of each warp, in all its threads; op is commutative.
template <class Block, class P, class Op>
FASTSMC_KERNEL P reduce_warps(Block& block, P p, Op op) {
  FASTSMC_UNROLL
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const P other = block.shuffle_xor(p, mask);
    block.each([&](int thread) { p[thread] = op(p[thread], other[thread]); });
  }
  return p;
}

// Of all threads; `none` changes nothing in op.
template <class Block, class P, class Op>
FASTSMC_KERNEL typename P::Value reduce(Block& block, P p, typename P::Value none, Op op, void* scratch) {
  constexpr int kWarps = Block::kThreads / kWarp;
  auto* const of_warps = static_cast<typename P::Value*>(scratch);
  p = reduce_warps(block, p, op);
  block.sync();  // until nobody reads what the scratch held before
  block.each([&](int thread) {
    if (thread % kWarp == 0) of_warps[thread / kWarp] = p[thread];
  });
  block.sync();
  block.each([&](int thread) {
    const int lane = thread % kWarp;
    p[thread] = lane < kWarps ? of_warps[lane] : none;
  });
  return block.uniform(reduce_warps(block, p, op));
}

// Where in a tile an item of a thread is: the items of a warp are neighbours, and so are equal items of its threads.
template <int kItems>
FASTSMC_HD constexpr int place_in_tile(int thread, int item) {
  return thread / kWarp * (kWarp * kItems) + item * kWarp + thread % kWarp;
}

// Calls work(thread, item, where it is) for all items of a tile that begins somewhere.
template <int kItems, class Block, class Index, class Work>
FASTSMC_KERNEL void for_tile(Block& block, Index begin, const Work& work) {
  block.each([&](int thread) {
    FASTSMC_UNROLL
    for (int k = 0; k < kItems; ++k) work(thread, k, begin + place_in_tile<kItems>(thread, k));
  });
}

// Items become their inclusive prefix sums in the order of the tile; returns the sum of all.
template <class Block, class T, int kItems, template <class> class Private>
FASTSMC_KERNEL T scan_tile(Block& block, Private<Items<T, kItems>>& items, void* scratch) {
  constexpr int kWarps = Block::kThreads / kWarp;
  auto* const of_warps = static_cast<T*>(scratch);
  Private<T> before, sums;
  block.each([&](int thread) { before[thread] = 0; });
  FASTSMC_UNROLL
  for (int k = 0; k < kItems; ++k) {
    block.each([&](int thread) { sums[thread] = items[thread][k]; });
    FASTSMC_UNROLL
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const Private<T> lower = block.shuffle_up(sums, distance);
      block.each([&](int thread) {
        if (thread % kWarp >= distance) sums[thread] += lower[thread];
      });
    }
    block.each([&](int thread) { items[thread][k] = before[thread] + sums[thread]; });
    const Private<T> of_item = block.shuffle_from(sums, kWarp - 1);
    block.each([&](int thread) { before[thread] += of_item[thread]; });
  }
  block.sync();
  block.each([&](int thread) {
    if (thread % kWarp == 0) of_warps[thread / kWarp] = before[thread];
  });
  block.sync();
  block.each([&](int thread) {
    T lower = 0, total = 0;
    FASTSMC_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      lower += warp < thread / kWarp ? of_warps[warp] : 0;
      total += of_warps[warp];
    }
    FASTSMC_UNROLL
    for (int k = 0; k < kItems; ++k) items[thread][k] += lower;
    sums[thread] = total;
  });
  return block.uniform(sums);
}

}  // namespace fastsmc::cuda
