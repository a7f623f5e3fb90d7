// Counter-based random numbers: a pure function of (seed, slot, iteration, stream, index); see
// common/philox.h.
#pragma once

#include <cstdint>

namespace fastsmc::cpu {

// out [slots, dim], rows first_slot .. first_slot + slots - 1
void philox_integers(uint32_t* out, int64_t slots, int64_t dim, uint64_t seed, uint32_t first_slot, uint32_t iteration,
                     uint32_t stream);
void standard_normal(float* out, int64_t slots, int64_t dim, uint64_t seed, uint32_t first_slot, uint32_t iteration,
                     uint32_t stream);
// Two words of a block make one number of 53 bits: element i of a row uses words 2 (i % 2), 2 (i % 2) + 1 of
// block i / 2.
void uniform(double* out, int64_t slots, int64_t dim, uint64_t seed, uint32_t first_slot, uint32_t iteration,
             uint32_t stream);

}  // namespace fastsmc::cpu
