// Marks functions that CUDA compiles for both sides, and copies bits between types of one size.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTSMC_HD __host__ __device__
#else
#define FASTSMC_HD
#endif

namespace fastsmc {

template <class To, class From>
FASTSMC_HD static inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are copied between types of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace fastsmc
