#define FASTSMC_LEVEL avx512bf16
#define FASTSMC_VECTOR_BYTES 64
#define FASTSMC_MULTIPLIER "cpu/pair_product.h"
#include "cpu/level.h"

namespace fastsmc::cpu {
const Kernels& kernels_avx512bf16() {
  return avx512bf16::table;
}
}  // namespace fastsmc::cpu
