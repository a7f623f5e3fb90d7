// Particles copied to the slots of their children, whatever they are made of: rows are moved as words of up to 16
// bytes.
//
// Two launches. The first looks at all ancestors, so that nothing moves where one of them is bad; the second reads the
// verdict where it lies. There a block moves a tile of words: many rows where they are short, a piece of one where it
// is long. What it reads and writes is what moves, each once; in place, rows that stay are neither read nor written.
#pragma once

#include "cuda/rows.h"

namespace fastsmc::cuda {

struct alignas(16) Word16 {
  uint64_t low, high;
};

struct CheckAncestors {
  const int64_t* ancestors;  // [m]
  int64_t n, m;
  bool in_place;
  int64_t* status;
  static constexpr int kThreads = 256;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    block.each([&](int thread) {
      const int64_t slot = block.index() * kThreads + thread;
      if (slot >= m) return;
      const int64_t parent = ancestors[slot];
      if (parent < 0 || parent >= n)
        report(status, Fault::kAncestor, slot);
      else if (in_place && ancestors[parent] != parent)  // its own slot is overwritten
        report(status, Fault::kNotPermuted, slot);
    });
  }
};

template <class W>
struct Gather {
  const W* particles;  // [.., words]
  const int64_t* ancestors;
  W* out;  // [m, words], may be particles
  int64_t m, words;
  bool in_place;
  const int64_t* status;
  int64_t rows, pieces;  // of a block: rows where they are short, or one of the pieces of a row
  static constexpr int kThreads = 256, kItems = 8;
  static constexpr int64_t kWords = kThreads * kItems;
  size_t shared_bytes() const { return 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    if (*status != kFine) return;
    const int64_t first_slot = block.index() / pieces * rows, first_word = block.index() % pieces * kWords;
    const auto width = static_cast<uint32_t>(words < kWords ? words : kWords);
    block.each([&](int thread) {
      W moved[kItems];
      int64_t to[kItems];
      FASTSMC_UNROLL
      for (int k = 0; k < kItems; ++k) {  // all loads before the first store
        const auto i = static_cast<uint32_t>(k * kThreads + thread);
        const int64_t slot = first_slot + i / width, word = first_word + i % width;
        to[k] = -1;
        if (i / width >= rows || slot >= m || word >= words) continue;
        const int64_t parent = ancestors[slot];
        if (in_place && parent == slot) continue;
        moved[k] = particles[parent * words + word];
        to[k] = slot * words + word;
      }
      FASTSMC_UNROLL
      for (int k = 0; k < kItems; ++k)
        if (to[k] >= 0) out[to[k]] = moved[k];
    });
  }
};

}  // namespace fastsmc::cuda
