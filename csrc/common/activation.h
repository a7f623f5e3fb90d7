// Activations of layers, with their slopes. L is as in common/elementary.h. Header for host and device; no Python, no
// torch.
#pragma once

#include "common/elementary.h"

namespace fastsmc {

enum class Activation : int64_t { kIdentity, kRelu, kTanh, kGelu, kSilu };

namespace activation {

struct Identity {
  template <class L>
  FASTSMC_HD static typename L::Float apply(typename L::Float z, typename L::Float& slope) {
    slope = elementary::splat<L>(1.f);
    return z;
  }
};

struct Relu {
  template <class L>
  FASTSMC_HD static typename L::Float apply(typename L::Float z, typename L::Float& slope) {
    const auto zero = elementary::splat<L>(0.f);
    slope = z > 0.f ? elementary::splat<L>(1.f) : zero;
    return z < 0.f ? zero : z;  // NaN stays NaN
  }
};

struct Tanh {
  template <class L>
  FASTSMC_HD static typename L::Float apply(typename L::Float z, typename L::Float& slope) {
    const auto t = elementary::tanh<L>(z);
    slope = 1.f - t * t;
    return t;
  }
};

struct Gelu {
  template <class L>
  FASTSMC_HD static typename L::Float apply(typename L::Float z, typename L::Float& slope) {
    typename L::Float density, cdf;
    elementary::normal_density_and_cdf<L>(z, density, cdf);
    slope = L::fma(z, density, cdf);
    return z * cdf;
  }
};

struct Silu {
  template <class L>
  FASTSMC_HD static typename L::Float apply(typename L::Float z, typename L::Float& slope) {
    const auto s = elementary::sigmoid<L>(z);
    slope = s * L::fma(z, 1.f - s, elementary::splat<L>(1.f));
    return z * s;
  }
};

// work(the activation), one of the types above.
template <class Work>
FASTSMC_HD static inline void dispatch(Activation activation, const Work& work) {
  switch (activation) {
    case Activation::kIdentity:
      return work(Identity{});
    case Activation::kRelu:
      return work(Relu{});
    case Activation::kTanh:
      return work(Tanh{});
    case Activation::kGelu:
      return work(Gelu{});
    case Activation::kSilu:
      return work(Silu{});
  }
}

}  // namespace activation
}  // namespace fastsmc
