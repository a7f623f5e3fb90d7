// Numbers of one type as another; and results as their reader has them, behind the op that made them: where that has
// found fault they are NaN, or -1, as nobody waits for its status. A read and a write.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/rows.h"

namespace fastsmc::cuda {

template <class From, class To>
struct Deliver {
  const From* from;  // [n]
  To* to;            // [n], may be from
  int64_t n;
  const int64_t* status;  // null where nothing can be wrong

  static constexpr int kThreads = 256;
  static constexpr int kItems = 4;
  size_t shared_bytes() const { return 0; }

  FASTSMC_HD static To spoilt() {
    if constexpr (std::is_floating_point_v<To>)
      return static_cast<To>(NAN);
    else
      return -1;
  }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const bool fine = status == nullptr || *status == kFine;
    block.each([&](int thread) {
      FASTSMC_UNROLL
      for (int k = 0; k < kItems; ++k) {
        const int64_t i = block.index() * kThreads * kItems + side_by_side<kThreads>(thread, k);
        if (i < n) to[i] = fine ? static_cast<To>(from[i]) : spoilt();
      }
    });
  }
};

}  // namespace fastsmc::cuda
