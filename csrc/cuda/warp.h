// The warps of a block, each on its way alone, and products of matrices that the lanes of a warp hold between them.
//
// each_warp(block, f) calls f(warp) for the own warp on the device, for all in order on the host. A warp has
//
//   index()                of the warp in the block
//   each(f)                f(lane) for every lane
//   Private<T>             one T for each lane, p[lane]: a register on the device
//   multiply<Format>(c, a, b)   C += A B by one instruction, for the lane's parts of C [16, 8], A [16, depth] and
//                          B [depth, 8]: functions of the lane that give pointers to them
//
// With group = lane / 4 and member = lane % 4, a lane holds (PTX ISA, "Matrix fragments for mma.m16n8k8" and
// ".m16n8k16")
//
//   c[i]   C at row group + 8 (i / 2), column 2 member + i % 2
//   a[r]   A at row group + 8 (r % 2), columns first(r / 2) ..., as many as fit a word
//   b[r]   B at column group, rows first(r) ..., likewise, where first(r) = words member + r depth / 2
#pragma once

#include "cuda/block.h"

namespace fastsmc::cuda {

struct Lane {
  int group, member;
  FASTSMC_KERNEL explicit Lane(int lane) : group(lane / 4), member(lane % 4) {}

  FASTSMC_KERNEL int c_row(int i) const { return group + 8 * (i / 2); }
  FASTSMC_KERNEL int c_column(int i) const { return 2 * member + i % 2; }
  FASTSMC_KERNEL int a_row(int r) const { return group + 8 * (r % 2); }
  // Of the first operand of a word along the depth, for register r / 2 of A and r of B.
  template <class Format>
  FASTSMC_KERNEL int first(int r) const {
    return Format::kPerWord * member + r * (Format::kDepth / 2);
  }
};

#if defined(__CUDACC__)

class DeviceWarp {
 public:
  template <class T>
  using Private = DeviceBlock<kWarp>::Private<T>;

  __device__ __forceinline__ int index() const { return static_cast<int>(threadIdx.x) / kWarp; }

  template <class Function>
  __device__ __forceinline__ void each(const Function& function) const {
    function(static_cast<int>(threadIdx.x) % kWarp);
  }

  template <class Format, class C, class A, class B>
  __device__ __forceinline__ void multiply(const C& c, const A& a, const B& b) const {
    Format::multiply(c(0), a(0), b(0));
  }
};

template <class Block, class Function>
__device__ __forceinline__ void each_warp(Block&, const Function& function) {
  DeviceWarp warp;
  function(warp);
}

#else

class HostWarp {
 public:
  template <class T>
  using Private = HostBlock<kWarp>::Private<T>;

  explicit HostWarp(int index) : index_(index) {}

  int index() const { return index_; }

  template <class Function>
  void each(const Function& function) const {
    for (int i = 0; i < kWarp; ++i) function(backwards ? kWarp - 1 - i : i);
  }

  template <class Format, class C, class A, class B>
  void multiply(const C& c, const A& a, const B& b) const {
    float left[16][Format::kDepth], right[Format::kDepth][8];
    each([&](int lane) {
      const Lane at(lane);
      for (int e = 0; e < Format::kPerWord; ++e) {
        for (int r = 0; r < 4; ++r)
          left[at.a_row(r)][at.template first<Format>(r / 2) + e] = Format::value(a(lane)[r], e);
        for (int r = 0; r < 2; ++r) right[at.template first<Format>(r) + e][at.group] = Format::value(b(lane)[r], e);
      }
    });
    each([&](int lane) {
      const Lane at(lane);
      for (int i = 0; i < 4; ++i) {
        double sum = c(lane)[i];
        for (int k = 0; k < Format::kDepth; ++k)
          sum += static_cast<double>(left[at.c_row(i)][k]) * right[k][at.c_column(i)];
        c(lane)[i] = static_cast<float>(sum);  // a device rounds once as well, though towards zero
      }
    });
  }

 private:
  int index_;
};

template <class Block, class Function>
void each_warp(Block&, const Function& function) {
  constexpr int kWarps = Block::kThreads / kWarp;
  for (int i = 0; i < kWarps; ++i) {
    HostWarp warp(backwards ? kWarps - 1 - i : i);
    function(warp);
  }
}

#endif

}  // namespace fastsmc::cuda
