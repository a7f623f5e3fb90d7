// Sums of partial results, in an order that depends on their number alone: each read once, each sum written once.
#pragma once

#include "cuda/block.h"

namespace fastsmc::cuda {

// out [n] = the sum over slices [slices, n], in order; out may be the first of them.
template <class T>
struct AddSlices {
  const T* partials;
  T* out;
  int64_t slices, n;
  static constexpr int kThreads = 256;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    block.each([&](int thread) {
      const int64_t i = block.index() * kThreads + thread;
      if (i >= n) return;
      T sum = partials[i];
      for (int64_t s = 1; s < slices; ++s) sum += partials[s * n + i];
      out[i] = sum;
    });
  }
};

template <class T>
void add_slices(const T* partials, T* out, int64_t slices, int64_t n, Stream stream) {
  constexpr int kThreads = AddSlices<T>::kThreads;
  launch(AddSlices<T>{partials, out, slices, n}, (n + kThreads - 1) / kThreads, stream);
}

}  // namespace fastsmc::cuda
