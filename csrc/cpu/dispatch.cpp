// Which instruction-set level runs: decided once, when the first kernel is called.
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/kernels.h"

namespace fastsmc::cpu {
namespace {

// FASTSMC_EMULATE compiles the levels above avx2 for AVX2, or amx for avx512bf16, with the same results: they run where
// the processor lacks them, but only when they are asked for.
#if defined(FASTSMC_EMULATE_ON)
constexpr bool kEmulated = true, kTilesEmulated = true;
#elif defined(FASTSMC_EMULATE_TILES)
constexpr bool kEmulated = false, kTilesEmulated = true;
#else
constexpr bool kEmulated = false, kTilesEmulated = false;
#endif

struct Level {
  const char* name;
  bool emulated;
  bool (*supported)();
  const Kernels& (*kernels)();
};

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

[[maybe_unused]] bool has_avx512() {
  if (kEmulated) return has_avx2();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] bool has_avx512bf16() {
  if (kEmulated) return has_avx2();
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

// Tiles are 8 KiB of state that Linux keeps only for processes that ask for it.
[[maybe_unused]] bool has_amx() {
  if (kTilesEmulated) return has_avx512bf16();
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  if ((edx & kBfloat16) == 0 || (edx & kTile) == 0 || !has_avx512bf16()) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Level kLevels[] = {
    {"none", false, [] { return true; }, kernels_none},
#if defined(FASTSMC_HAS_AVX2)
    {"avx2", false, has_avx2, kernels_avx2},
#endif
#if defined(FASTSMC_HAS_AVX512)
    {"avx512", kEmulated, has_avx512, kernels_avx512},
#endif
#if defined(FASTSMC_HAS_AVX512BF16)
    {"avx512bf16", kEmulated, has_avx512bf16, kernels_avx512bf16},
#endif
#if defined(FASTSMC_HAS_AMX)
    {"amx", kTilesEmulated, has_amx, kernels_amx},
#endif
};

// Only the levels in question are asked, from the highest down: to ask for tiles is to have them.
const Kernels& choose() {
  const char* wanted = std::getenv("FASTSMC_SIMD");
  const bool automatic = wanted == nullptr || *wanted == '\0';
  for (size_t i = std::size(kLevels); i-- > 0;) {
    const Level& level = kLevels[i];
    if ((automatic ? !level.emulated : std::strcmp(wanted, level.name) == 0) && level.supported())
      return level.kernels();
  }
  std::string runnable;
  for (const Level& level : kLevels)
    if (level.supported()) runnable += (runnable.empty() ? "" : ", ") + std::string(level.name);
  throw std::invalid_argument("FASTSMC_SIMD is '" + std::string(wanted) + "'; this processor runs " + runnable);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const NetworkKernels& network_kernels(const NetworkSpec& spec, const Batch* batch) {
  const NetworkKernels& wanted = *kernels().network[static_cast<int>(spec.precision)];
  return wanted.serves(spec, batch) ? wanted : *kernels().network[static_cast<int>(Precision::kHighest)];
}

int available_levels(const char** names, int capacity) {
  int count = 0;
  for (const Level& level : kLevels)
    if (level.supported() && count < capacity) names[count++] = level.name;
  return count;
}

}  // namespace fastsmc::cpu
