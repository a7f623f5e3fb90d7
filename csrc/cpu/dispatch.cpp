// Which instruction-set level runs: decided once, when the first kernel is called.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace fastsmc::cpu {
namespace {

struct Level {
  const char* name;
  bool (*supported)();
  const Kernels& (*kernels)();
};

const Level kLevels[] = {
    {"none", [] { return true; }, kernels_none},
#if defined(__x86_64__)
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, kernels_avx2},
    {"avx512",
     [] {
#if defined(FASTSMC_EMULATE_AVX512)
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
     },
     kernels_avx512},
#endif
};

const Kernels& choose() {
  const char* wanted = std::getenv("FASTSMC_SIMD");
  const bool automatic = wanted == nullptr || *wanted == '\0';
  const Level* best = nullptr;
  std::string runnable;
  for (const Level& level : kLevels) {
    if (!level.supported()) continue;
    runnable += (runnable.empty() ? "" : ", ") + std::string(level.name);
    if (automatic || std::strcmp(wanted, level.name) == 0) best = &level;
  }
  if (best == nullptr)
    throw std::invalid_argument("FASTSMC_SIMD is '" + std::string(wanted) + "'; this processor runs " + runnable);
  return best->kernels();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const NetworkKernels& network_kernels(const NetworkSpec& spec) {
  const NetworkKernels& wanted = *kernels().network[static_cast<int>(spec.precision)];
  return wanted.serves(spec) ? wanted : *kernels().network[static_cast<int>(Precision::kHighest)];
}

int available_levels(const char** names, int capacity) {
  int count = 0;
  for (const Level& level : kLevels)
    if (level.supported() && count < capacity) names[count++] = level.name;
  return count;
}

}  // namespace fastsmc::cpu
