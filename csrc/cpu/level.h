// The table of one instruction-set level; included once by each level_*.cpp.
#pragma once

#define FASTSMC_STRINGIFY_(x) #x
#define FASTSMC_STRINGIFY(x) FASTSMC_STRINGIFY_(x)

#include "cpu/kernels.h"
#include "cpu/network_kernel.h"
#if defined(FASTSMC_MULTIPLIER)
#include "cpu/block_kernel.h"
#endif
#include "cpu/update_kernel.h"
#include "cpu/weight_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

static const Kernels table = {
    FASTSMC_STRINGIFY(FASTSMC_LEVEL),
#if defined(FASTSMC_MULTIPLIER)
    {&network_kernels, block_kernels<2>(), block_kernels<1>()},
#else
    {&network_kernels, &network_kernels, &network_kernels},
#endif
    update_kernels,
    weight_kernels,
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
