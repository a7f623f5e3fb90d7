#define FASTSMC_LEVEL none
#define FASTSMC_VECTOR_BYTES 16
#include "cpu/level.h"

namespace fastsmc::cpu {
const Kernels& kernels_none() {
  return none::table;
}
}  // namespace fastsmc::cpu
