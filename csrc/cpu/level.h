// The table of one instruction-set level; included once by each level_*.cpp.
#pragma once

#define FASTSMC_STRINGIFY_(x) #x
#define FASTSMC_STRINGIFY(x) FASTSMC_STRINGIFY_(x)

#include "cpu/kernels.h"
#include "cpu/network_kernel.h"
#if FASTSMC_TILES
#include "cpu/tile_kernel.h"
#endif
#include "cpu/update_kernel.h"
#include "cpu/weight_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

static const Kernels table = {
    FASTSMC_STRINGIFY(FASTSMC_LEVEL),
#if FASTSMC_TILES
    {&network_kernels, &high_tile_kernels, &medium_tile_kernels},
#else
    {&network_kernels, &network_kernels, &network_kernels},
#endif
    multiply_adds,
    update_kernels,
    weight_kernels,
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
