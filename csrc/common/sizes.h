// Sizes that come from outside, multiplied with a check before anything is allocated or indexed by them. For the host.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace fastsmc {

// No array is longer, and sums and small multiples of such sizes fit 64 bits.
constexpr int64_t kMostEntries = int64_t{1} << 48;

inline int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(product, size, &product) || product > kMostEntries)
      throw std::length_error("a size is negative or a product of sizes larger than 2^48");
  return product;
}

}  // namespace fastsmc
