// What a leapfrog step does to each weight:
//
//   v     = persistence v + noise xi
//   v     = v + kick s (likelihood_scale g - precision theta)
//   theta = theta + drift s v
//
// L is as in common/elementary.h; Scale is a Float, or a type that multiplies one as the factor one. Header for host
// and device; no Python, no torch.
#pragma once

#include "common/elementary.h"

namespace fastsmc::update {

// What is dropped may be NaN.
template <class L>
FASTSMC_HD static inline typename L::Float refreshed(typename L::Float v, typename L::Float xi, typename L::Float noise,
                                                     float persistence) {
  return persistence == 0 ? xi * noise : L::fma(v, elementary::splat<L>(persistence), xi * noise);
}

template <class L, class Scale>
FASTSMC_HD static inline typename L::Float kicked(typename L::Float v, typename L::Float theta, typename L::Float grad,
                                                  typename L::Float precision, Scale scale, float likelihood_scale,
                                                  float kick) {
  const auto force = L::fma(grad, elementary::splat<L>(likelihood_scale), -(precision * theta));
  return L::fma(scale * force, elementary::splat<L>(kick), v);
}

template <class L, class Scale>
FASTSMC_HD static inline typename L::Float drifted(typename L::Float theta, typename L::Float v, Scale scale,
                                                   float drift) {
  return L::fma(scale * v, elementary::splat<L>(drift), theta);
}

}  // namespace fastsmc::update
