// Standard normal numbers from the integers of common/philox.h, by Box and Muller: words 0 and 1 of a block give
// parameters 4 j and 4 j + 1, words 2 and 3 the other two.
//
// L is as in common/elementary.h, U the unsigned integers of its shape. Header for host and device; no Python, no
// torch.
#pragma once

#include "common/elementary.h"
#include "common/philox.h"

namespace fastsmc {

template <class L, class U>
FASTSMC_HD static inline void box_muller(U radius_bits, U angle_bits, typename L::Float& first,
                                         typename L::Float& second) {
  using V = typename L::Float;
  using I = typename L::Int;
  const V whole = L::to_float(bit_cast<I>(radius_bits >> 1));
  const V u = L::fma(whole, elementary::splat<L>(0x1p-31f), elementary::splat<L>(0x1p-32f));  // (0, 1]
  const V radius = L::sqrt(elementary::log<L>(u) * -2.f);
  V sine, cosine;
  elementary::sincos_turns<L>(L::to_float(bit_cast<I>(angle_bits)) * 0x1p-32f, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

}  // namespace fastsmc
