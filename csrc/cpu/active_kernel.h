// Products without the terms that are zero. The inputs of images and of one-hot columns are mostly zero, and beside
// each other: a panel of samples needs only the inputs that one of them has, a panel of inputs only the samples that
// have one.
//
// Such a block [terms][row] of a packed batch is closed up when it is packed, and the terms that are left are listed
// beside it. What is left out is 0 a, which changes no sum as long as a is finite; where it is not, the block is opened
// again, so that 0 times infinity is NaN as in every other product.
#pragma once

#include "cpu/micro_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// The terms that a block of `depth` still has: their number, then each.
struct Active {
  int64_t depth = 0;
  const int32_t* list = nullptr;

  static int64_t list_length(int64_t depth) { return 1 + depth; }
  bool all() const { return list == nullptr || list[0] == depth; }
};

// The terms of b are the columns of a that are listed; a_column is 1.
struct ActiveProduct : Product {
  const int32_t* term;

  int64_t a_at(int64_t k) const { return term[k]; }
  void advance(int64_t terms) {
    term += terms;
    b += terms * b_row;
  }
};

static inline bool any(const float* row, int64_t count) {
  vint nonzero{};
  for (int64_t i = 0; i < count; i += kLanes) nonzero |= load<vfloat>(row + i) != vfloat{};
  uint64_t word[kVectorBytes / 8], one = 0;
  memcpy(word, &nonzero, sizeof word);
  for (uint64_t part : word) one |= part;
  return one != 0;
}

// Closes up a block [depth][row] unless it is nearly full, and lists what is left.
static void close_up(float* block, int64_t depth, int64_t row, int32_t* list) {
  int32_t kept = 0;
  for (int64_t k = 0; k < depth; ++k)
    if (any(block + k * row, row)) list[1 + kept++] = static_cast<int32_t>(k);
  if (kept > depth - depth / 16) kept = static_cast<int32_t>(depth);
  list[0] = kept;
  if (kept == depth) return;
  for (int64_t k = 0; k < kept; ++k)
    if (list[1 + k] > k) memcpy(block + k * row, block + list[1 + k] * row, static_cast<size_t>(row) * sizeof(float));
}

// The block as it was, at `to`.
static void open_up(const float* block, Active active, int64_t row, float* to) {
  memset(to, 0, static_cast<size_t>(active.depth * row) * sizeof(float));
  for (int64_t k = 0; k < active.list[0]; ++k)
    memcpy(to + active.list[1 + k] * row, block + k * row, static_cast<size_t>(row) * sizeof(float));
}

static bool all_finite(const float* x, int64_t count) {
  vfloat zeros[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int v = 0; v < 4; ++v) zeros[v] += load<vfloat>(x + i + v * kLanes) * 0.f;
  float zero = 0;
  for (; i < count; ++i) zero += x[i] * 0.f;
  return sum_lanes((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) + static_cast<double>(zero) == 0;
}

// The product whose b may be closed up.
template <Init Start>
__attribute__((always_inline)) static inline void multiply(const Product& p, int64_t rows, Active active) {
  if (active.all()) return multiply<Start>(p, rows);
  ActiveProduct some{p, active.list + 1};
  some.depth = active.list[0];
  multiply<Start>(some, rows);
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
