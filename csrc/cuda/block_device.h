// The block of a CUDA device; block.h says what it offers.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/block.h"

namespace fastsmc::cuda {

using Stream = cudaStream_t;

template <int kThreadsOfBlock>
class DeviceBlock {
 public:
  static constexpr int kThreads = kThreadsOfBlock;
  static_assert(kThreads % kWarp == 0, "a block is made of whole warps");

  template <class T>
  class Private {
   public:
    using Value = T;
    __device__ __forceinline__ T& operator[](int) { return value_; }
    __device__ __forceinline__ const T& operator[](int) const { return value_; }

   private:
    T value_;
  };

  __device__ __forceinline__ int64_t index() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t grid() const { return gridDim.x; }

  template <class Function>
  __device__ __forceinline__ void each(const Function& function) const {
    function(static_cast<int>(threadIdx.x));
  }

  __device__ __forceinline__ void sync() const { __syncthreads(); }

  template <class T>
  __device__ __forceinline__ T* shared(int64_t count) {
    extern __shared__ __align__(16) unsigned char memory[];
    unsigned char* const piece = memory + used_;
    used_ += static_cast<unsigned>(shared_size<T>(count));
    return reinterpret_cast<T*>(piece);
  }

  template <class T>
  __device__ __forceinline__ Private<T> shuffle_xor(const Private<T>& p, int mask) const {
    Private<T> other;
    other[0] = __shfl_xor_sync(~0u, p[0], mask);
    return other;
  }

  template <class T>
  __device__ __forceinline__ Private<T> shuffle_up(const Private<T>& p, int distance) const {
    Private<T> other;
    other[0] = __shfl_up_sync(~0u, p[0], static_cast<unsigned>(distance));
    return other;
  }

  template <class T>
  __device__ __forceinline__ Private<T> shuffle_from(const Private<T>& p, int lane) const {
    Private<T> other;
    other[0] = __shfl_sync(~0u, p[0], lane);
    return other;
  }

  template <class T>
  __device__ __forceinline__ T uniform(const Private<T>& p) const {
    return p[0];
  }

  __device__ __forceinline__ void copy_async(void* to, const void* from, int size) const {
    const auto target = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if (size == 16)  // past the first-level cache
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(from) : "memory");
    else if (size == 8)
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(target), "l"(from) : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target), "l"(from) : "memory");
  }

  __device__ __forceinline__ void copy_commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }

  template <int kGroups>
  __device__ __forceinline__ void copy_wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
  }

 private:
  unsigned used_ = 0;
};

__device__ __forceinline__ void atomic_min(int64_t* address, int64_t value) {
  static_assert(sizeof(long long) == sizeof(int64_t), "CUDA's 64-bit atomics take long long");
  atomicMin(reinterpret_cast<long long*>(address), static_cast<long long>(value));
}

__device__ __forceinline__ void atomic_add(int32_t* address, int32_t value) {
  atomicAdd(address, value);
}
__device__ __forceinline__ void atomic_add(int64_t* address, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

inline void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) run(const __grid_constant__ Kernel kernel) {
  DeviceBlock<Kernel::kThreads> block;
  kernel(block);
}

template <class Kernel>
void launch(const Kernel& kernel, int64_t grid, Stream stream) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (grid == 0) return;
  const size_t bytes = kernel.shared_bytes();
  if (bytes > kWithoutAsking)
    require(cudaFuncSetAttribute(run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  run<<<checked_grid(grid), Kernel::kThreads, bytes, stream>>>(kernel);
  require(cudaGetLastError());
}

inline void fill_zero(void* to, size_t bytes, Stream stream) {
  require(cudaMemsetAsync(to, 0, bytes, stream));
}

}  // namespace fastsmc::cuda
