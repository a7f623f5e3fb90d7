// Counter-based random numbers; common/philox.h defines them.
//
// A block makes those of a run of Philox blocks of one slot, one a thread, and stores them from shared memory, side by
// side whatever the length of rows: the results are all that touches memory.
#pragma once

#include "common/normal.h"
#include "cuda/block.h"
#include "cuda/ops.h"

namespace fastsmc::cuda {

FASTSMC_HD inline philox::Counter words(const Names& names, int64_t slot, int64_t block) {
  return philox::philox4x32(
      {{static_cast<uint32_t>(block), names.first_slot + static_cast<uint32_t>(slot), names.iteration, names.stream}},
      philox::key_of(names.seed));
}

// The standard normal number of one parameter.
FASTSMC_HD inline float normal(const Names& names, int64_t slot, int64_t i) {
  const philox::Counter of = words(names, slot, i / 4);
  const bool upper = (i & 2) != 0;
  const uint32_t radius = upper ? of.word[2] : of.word[0], angle = upper ? of.word[3] : of.word[1];
  float first, second;
  box_muller<Scalar>(radius, angle, first, second);
  return (i & 1) != 0 ? second : first;
}

struct Integers {
  using Number = uint32_t;
  static constexpr int kCount = 4;  // of a Philox block
  FASTSMC_HD static void make(const philox::Counter& words, uint32_t* out) {
    for (int k = 0; k < 4; ++k) out[k] = words.word[k];
  }
};

struct Uniform53 {
  using Number = double;
  static constexpr int kCount = 2;
  FASTSMC_HD static void make(const philox::Counter& words, double* out) {
    for (int k = 0; k < 2; ++k) out[k] = philox::uniform53(words.word[2 * k], words.word[2 * k + 1]);
  }
};

struct Normals {
  using Number = float;
  static constexpr int kCount = 4;
  FASTSMC_HD static void make(const philox::Counter& words, float* out) {
    for (int k = 0; k < 4; k += 2) box_muller<Scalar>(words.word[k], words.word[k + 1], out[k], out[k + 1]);
  }
};

template <class Kind>
struct Fill {
  using Number = typename Kind::Number;
  Number* out;  // [slots, numbers]
  int64_t numbers, runs;
  Names names;
  static constexpr int kThreads = 256;
  static constexpr int64_t kRun = kThreads * Kind::kCount;
  size_t shared_bytes() const { return shared_size<Number>(kRun); }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    const int64_t slot = block.index() / runs, run = block.index() % runs;
    auto* const made = block.template shared<Number>(kRun);
    block.each(
        [&](int thread) { Kind::make(words(names, slot, run * kThreads + thread), made + thread * Kind::kCount); });
    block.sync();
    block.each([&](int thread) {
      FASTSMC_UNROLL
      for (int k = 0; k < Kind::kCount; ++k) {
        const int64_t i = run * kRun + k * kThreads + thread;
        if (i < numbers) out[slot * numbers + i] = made[k * kThreads + thread];
      }
    });
  }
};

}  // namespace fastsmc::cuda
