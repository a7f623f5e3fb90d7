#define FASTSMC_LEVEL avx2
#define FASTSMC_VECTOR_BYTES 32
#include "cpu/level.h"

namespace fastsmc::cpu {
const Kernels& kernels_avx2() {
  return avx2::table;
}
}  // namespace fastsmc::cpu
