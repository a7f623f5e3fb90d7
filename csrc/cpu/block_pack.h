// Operands of products of blocks, as sums of bfloat16 numbers.
//
// x = x_0 + x_1 + ..., where x_0 is x rounded to bfloat16 (to nearest even), x_1 what is left rounded likewise, and so
// on: 1 term leaves an error of 2^-9 |x|, 2 terms 2^-18 |x|, as long as |x| > 2^-110: below 2^-126 a term counts as
// zero. Infinities and NaN are their first term; finite numbers from 2^128 (1 - 2^-9) up become infinite. Infinity
// times a number whose later terms are zero is NaN where there is more than one term.
//
// An operand consists of blocks of 32 x 32 numbers, 512 words of 32 bits per term; a word is a pair of neighbours in
// the direction of the sum, the first in its lower half:
//   left    [32 rows][16 pairs]
//   right   [16 pairs][32 columns]
#pragma once

#include "cpu/simd.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int64_t kEdge = 32, kPairs = kEdge / 2;
constexpr int64_t kBlockWords = kEdge * kEdge / 2;

static inline int64_t blocks_of(int64_t n) {
  return (n + kEdge - 1) / kEdge;
}

// C [rows][columns] = the sum of `depth` products, whose operands are blocks one after the other, added to what C is if
// wanted. Rows of C are filled up to a multiple of the multiplier's kRowStep, columns to one of 16; neither is more
// than 32.
struct BlockProduct {
  int64_t depth, rows, columns;
  const uint32_t *left, *right;
  float* c;
  int64_t c_row;
  bool accumulate;
};

// The bits of each term in the upper half of a word.
template <int Terms>
static inline void split(vfloat x, vuint (&term)[Terms]) {
#pragma GCC unroll 3
  for (int t = 0; t < Terms; ++t) {
    const vuint bits = (vuint)x;
    const vuint rounded = bits + ((bits >> 16 & 1) + 0x7FFFu);
    term[t] = (x == x ? rounded : bits | 0x400000u) & 0xFFFF0000u;  // a carry would make a number of some NaN
    if (t + 1 == Terms) break;
    const vfloat rest = x - (vfloat)term[t];  // exact
    x = rest - rest == 0.f ? rest : vfloat{};
  }
}

// Pairs (first[i], second[i]).
template <int Terms>
static inline void split_pairs(vfloat first, vfloat second, vuint (&words)[Terms]) {
#if defined(__AVX512BF16__)
  if constexpr (Terms == 1) {
    typedef uint16_t Halves __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));
    Halves turns;
    for (int i = 0; i < 2 * kLanes; ++i) turns[i] = static_cast<uint16_t>(i % 2 * kLanes + i / 2);
    words[0] = (vuint)__builtin_shuffle((Halves)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first), turns);
    return;
  }
#endif
  vuint a[Terms], b[Terms];
  split(first, a);
  split(second, b);
#pragma GCC unroll 3
  for (int t = 0; t < Terms; ++t) words[t] = a[t] >> 16 | b[t];
}

// Pairs of neighbours in the lanes of low, then of high.
template <int Terms>
static inline void split_neighbours(vfloat low, vfloat high, vuint (&words)[Terms]) {
#if defined(__AVX512BF16__)
  if constexpr (Terms == 1) {
    words[0] = (vuint)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return;
  }
#endif
  vint even, odd;
  for (int i = 0; i < kLanes; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  split_pairs(__builtin_shuffle(low, high, even), __builtin_shuffle(low, high, odd), words);
}

// 32 x 32 floats of a matrix; what it does not have of them is zero. Columns that are not neighbours are copied.
class FloatBlock {
 public:
  FloatBlock(const float* from, int64_t row, int64_t column, int64_t rows, int64_t columns)
      : at_(from), row_(row), rows_(rows), columns_(columns) {
    if (column == 1) return;
    for (int64_t r = 0; r < rows && r < kEdge; ++r)
      for (int64_t c = 0; c < columns && c < kEdge; ++c) copy_[r * kEdge + c] = from[r * row + c * column];
    at_ = copy_;
    row_ = kEdge;
  }
  FloatBlock(const FloatBlock&) = delete;
  FloatBlock& operator=(const FloatBlock&) = delete;

  vfloat load_at(int64_t row, int64_t column) const {
    const int64_t count = row < rows_ ? columns_ - column : 0;
    if (count <= 0) return vfloat{};
    return load_row(at_ + row * row_ + column, 1, count < kLanes ? count : kLanes);
  }

 private:
  const float* at_;
  int64_t row_, rows_, columns_;
  float copy_[kEdge * kEdge];
};

enum class Side { kLeft, kRight };
enum class Sum { kDown, kAcross };  // whether the product sums over the rows of the block or over its columns

// A block of the matrix, or of its transpose where the operand needs it so, at to[term][512]. Pairs are made in
// registers; where they come out across the operand's rows, 16 x 16 of them are transposed.
template <int Terms, Side Operand, Sum Over>
static void pack_block(const FloatBlock& block, uint32_t* to) {
  constexpr bool kTransposed = (Operand == Side::kLeft) != (Over == Sum::kAcross);
  for (int half = 0; half < 2; ++half) {
    vuint words[Terms][16];
    for (int i = 0; i < 16; ++i) {
      vuint pairs[Terms];
      if (Over == Sum::kDown) {
        split_pairs(block.load_at(2 * i, 16 * half), block.load_at(2 * i + 1, 16 * half), pairs);
      } else {
        split_neighbours(block.load_at(16 * half + i, 0), block.load_at(16 * half + i, 16), pairs);
      }
      for (int t = 0; t < Terms; ++t) words[t][i] = pairs[t];
    }
    for (int t = 0; t < Terms; ++t) {
      if (kTransposed) transpose(words[t]);
      uint32_t* half_block = to + t * kBlockWords + (Operand == Side::kLeft ? half * 256 : half * 16);
      for (int i = 0; i < 16; ++i) store(half_block + i * (Operand == Side::kLeft ? 16 : 32), words[t][i]);
    }
  }
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
