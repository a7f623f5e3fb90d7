#include "cpu/update.h"

#include "cpu/parallel.h"

namespace fastsmc::cpu {

void leapfrog(const UpdatePlan& plan, int64_t count, uint32_t first_slot, const float* particles, const float* grad,
              float* momentum, float* out, UpdateSums* sums) {
  const auto update = kernels().update.leapfrog;
  for_each(count, count * plan.dim > 1 << 14, [&](int64_t i) {
    const int64_t row = i * plan.dim;
    sums[i] =
        update(plan, first_slot + static_cast<uint32_t>(i), particles + row, grad + row, momentum + row, out + row);
  });
}

}  // namespace fastsmc::cpu
