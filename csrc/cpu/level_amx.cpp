#define FASTSMC_LEVEL amx
#define FASTSMC_VECTOR_BYTES 64
#define FASTSMC_MULTIPLIER "cpu/tile_product.h"
#include "cpu/level.h"

namespace fastsmc::cpu {
const Kernels& kernels_amx() {
  return amx::table;
}
}  // namespace fastsmc::cpu
