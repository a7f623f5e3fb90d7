// Kernels that are compiled twice from one source: by nvcc for a device, and by the C++ compiler for the host, where
// blocks, and the threads of each, run one after the other. The host twin does the same steps in the same order, so a
// device's logic is tested where there is none.
//
// A kernel is a struct of parameters, and its body a function of the block that runs it:
//
//   struct Scale {
//     float* x;
//     int64_t n;
//     float factor;
//     static constexpr int kThreads = 256;
//     size_t shared_bytes() const { return 0; }  // the sum of shared_size<T>(count) over the pieces the body takes
//     template <class Block>
//     FASTSMC_KERNEL void operator()(Block& block) const {
//       block.each([&](int thread) {
//         const int64_t i = block.index() * kThreads + thread;
//         if (i < n) x[i] *= factor;
//       });
//     }
//   };
//   launch(Scale{x, n, 2.f}, grid, stream);
//
// What stands outside `each` is the same for all threads of a block: loops, branches and barriers belong there. A Block
// has
//
//   index(), grid()            the number of this block, and of all
//   each(f)                    f(thread) for every thread; no barrier
//   sync()                     a barrier
//   Private<T>                 one T for each thread, p[thread]: a register on the device
//   shared<T>(count)           memory of the block, aligned to 16 bytes, not initialised; NaN on the host
//   shuffle_xor(p, mask)       Private: of the thread whose lane differs in these bits
//   shuffle_up(p, distance)    Private: of the thread so many lanes below in the warp; its own where there is none
//   shuffle_from(p, lane)      Private: of that lane of the warp
//   uniform(p)                 the value of p that all threads hold alike
//   copy_async(to, from, size) within each: 4, 8 or 16 aligned bytes of global memory into shared memory; until
//   copy_commit()              ends a group of them, and
//   copy_wait<N>()             has waited for all groups but the last N, and sync() follows, they are not there
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "common/host_device.h"

#if defined(__CUDACC__)
#define FASTSMC_KERNEL __device__ __forceinline__
#define FASTSMC_UNROLL _Pragma("unroll")
#else
#define FASTSMC_KERNEL inline
#define FASTSMC_UNROLL
#endif

namespace fastsmc::cuda {

constexpr int kWarp = 32;

// So many of what a thread has one of: a loop over them is unrolled, and they are registers.
template <class T, int kCount>
struct Items {
  T item[kCount];
  FASTSMC_HD T& operator[](int k) { return item[k]; }
  FASTSMC_HD const T& operator[](int k) const { return item[k]; }
};

// What a piece of shared memory takes from the block's.
template <class T>
FASTSMC_HD constexpr size_t shared_size(int64_t count) {
  return (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
}

// Blocks of a launch, as a device counts them.
inline unsigned checked_grid(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::length_error("an op needs more than the 2^31 - 1 blocks that a device has");
  return static_cast<unsigned>(blocks);
}

}  // namespace fastsmc::cuda

#if defined(__CUDACC__)
#include "cuda/block_device.h"
#else
#include "cuda/block_host.h"
#endif

namespace fastsmc::cuda {

// Writes a struct to the device, without a copy from the host.
template <class T>
struct Store {
  T* to;
  T value;
  static constexpr int kThreads = kWarp;
  size_t shared_bytes() const { return 0; }
  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    block.each([&](int thread) {
      if (thread == 0) *to = value;
    });
  }
};

}  // namespace fastsmc::cuda
