// Leapfrog and Langevin updates of all particles; see update_kernel.h.
#pragma once

#include "cpu/kernels.h"

namespace fastsmc::cpu {

// particles, grad, momentum and out are [count, plan.dim]; out may be particles; sums [count].
void leapfrog(const UpdatePlan& plan, int64_t count, uint32_t first_slot, const float* particles, const float* grad,
              float* momentum, float* out, UpdateSums* sums);

}  // namespace fastsmc::cpu
