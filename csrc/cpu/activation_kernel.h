// Activations and their slopes, vertical over any number of vectors.
#pragma once

#include "common/activation.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// z becomes act(z); act'(z) goes to slope unless that is null.
static void activate(Activation activation, float* z, float* slope, int64_t count) {
  activation::dispatch(activation, [=](auto kind) {
    for (int64_t i = 0; i < count; i += kLanes) {
      vfloat derivative;
      store(z + i, decltype(kind)::template apply<Lanes>(load<vfloat>(z + i), derivative));
      if (slope != nullptr) store(slope + i, derivative);
    }
  });
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
