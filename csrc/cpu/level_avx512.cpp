#define FASTSMC_LEVEL avx512
#define FASTSMC_VECTOR_BYTES 64
#include "cpu/level.h"

namespace fastsmc::cpu {
const Kernels& kernels_avx512() {
  return avx512::table;
}
}  // namespace fastsmc::cpu
