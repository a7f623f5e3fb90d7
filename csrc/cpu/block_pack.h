// Operands of products of blocks, as sums of bfloat16 numbers.
//
// x = x_0 + x_1 + ..., where x_0 is x rounded to bfloat16 (to nearest even), x_1 what is left rounded likewise, and so
// on: 1 term leaves an error of 2^-9 |x|, 2 terms 2^-18 |x|, as long as |x| > 2^-110: below 2^-126 a term counts as
// zero. Only the last term is infinite or NaN where x is, and it meets the first of the other operand alone: infinity
// times a number is infinity. With 1 term finite numbers from 2^128 (1 - 2^-9) up become infinite.
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

typedef uint16_t vhalf __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));

// The numbers of two vectors, one after the other, rounded to bfloat16; denormal numbers become zero.
static inline vhalf rounded(vfloat low, vfloat high) {
#if defined(__AVX512BF16__)
  return (vhalf)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#else
  const auto in_upper_half = [](vfloat x) {
    const vuint bits = (vuint)x, nearest = bits + ((bits >> 16 & 1) + 0x7FFFu);
    const vuint number = x == x ? nearest : bits | 0x400000u;  // a carry would make a number of some NaN
    return (vhalf)((bits & 0x7F800000u) != 0 ? number : bits & 0x80000000u);
  };
  vhalf upper;
  for (int i = 0; i < 2 * kLanes; ++i) upper[i] = static_cast<uint16_t>(2 * i + 1);
  return __builtin_shuffle(in_upper_half(low), in_upper_half(high), upper);
#endif
}

// The first or the second vector of two.
template <int Number>
static inline vfloat widened(vhalf numbers) {
#if defined(__AVX512BF16__)
  const __m256i part = _mm512_maskz_extracti64x4_epi64(0xF, (__m512i)numbers, Number);
  return (vfloat)_mm512_maskz_slli_epi32(0xFFFF, _mm512_maskz_cvtepu16_epi32(0xFFFF, part), 16);
#else
  vhalf upper;
  for (int i = 0; i < 2 * kLanes; ++i)
    upper[i] = static_cast<uint16_t>(i % 2 == 0 ? 0 : 2 * kLanes + Number * kLanes + i / 2);
  return (vfloat)__builtin_shuffle(vhalf{}, numbers, upper);
#endif
}

static inline vfloat in_reach_of_bfloat16(vfloat x) {
  constexpr float kLargest = 0x1.FEp127f;
  return min(max(x, splat<vfloat>(-kLargest)), splat<vfloat>(kLargest));
}

// Each term of two vectors, one after the other.
template <int Terms>
static inline void split(vfloat low, vfloat high, vhalf (&term)[Terms]) {
#pragma GCC unroll 3
  for (int t = 0; t + 1 < Terms; ++t) {
    term[t] = rounded(in_reach_of_bfloat16(low), in_reach_of_bfloat16(high));
    low -= widened<0>(term[t]);  // exactly
    high -= widened<1>(term[t]);
  }
  term[Terms - 1] = rounded(low, high);
}

// Those of two vectors in turn.
static inline vhalf in_turn(vhalf numbers) {
  vhalf turns;
  for (int i = 0; i < 2 * kLanes; ++i) turns[i] = static_cast<uint16_t>(i % 2 * kLanes + i / 2);
  return __builtin_shuffle(numbers, turns);
}

// What a matrix has behind its last row.
enum class Behind { kZeros, kLastRow };

// Floats of a matrix, and zeros behind its last column. Columns that are not neighbours are copied, 32 x 32 of them, as
// is what stands for missing rows.
class FloatBlock {
 public:
  FloatBlock(const float* from, int64_t row, int64_t column, int64_t rows, int64_t columns,
             Behind behind = Behind::kZeros)
      : at_(from), row_(row), rows_(rows), columns_(columns) {
    if (behind == Behind::kLastRow && rows < kEdge)
      rows_ = kEdge;
    else if (column == 1)
      return;
    for (int64_t r = 0; r < rows_ && r < kEdge; ++r)
      for (int64_t c = 0; c < columns && c < kEdge; ++c)
        copy_[r * kEdge + c] = from[(r < rows ? r : rows - 1) * row + c * column];
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
      vhalf term[Terms];
      if (Over == Sum::kDown)
        split(block.load_at(2 * i, 16 * half), block.load_at(2 * i + 1, 16 * half), term);
      else
        split(block.load_at(16 * half + i, 0), block.load_at(16 * half + i, 16), term);
      for (int t = 0; t < Terms; ++t) words[t][i] = (vuint)(Over == Sum::kDown ? in_turn(term[t]) : term[t]);
    }
    for (int t = 0; t < Terms; ++t) {
      if (kTransposed) transpose(words[t]);
      uint32_t* half_block = to + t * kBlockWords + (Operand == Side::kLeft ? half * 256 : half * 16);
      for (int i = 0; i < 16; ++i) store(half_block + i * (Operand == Side::kLeft ? 16 : 32), words[t][i]);
    }
  }
}

// The left operand of a product that sums over the columns of a matrix, block (r, k) of it at to[r * row_blocks + k].
// Row by row, as the matrix lies in memory: a row of a block is one line of 64 bytes.
template <int Terms>
static void pack_rows(const FloatBlock& matrix, int64_t rows, int64_t columns, uint32_t* to, int64_t row_blocks) {
  for (int64_t r = 0; r < blocks_of(rows) * kEdge; ++r) {
    uint32_t* line = to + r / kEdge * row_blocks * Terms * kBlockWords + r % kEdge * kPairs;
    for (int64_t c = 0; c < columns; c += kEdge, line += Terms * kBlockWords) {
      vhalf term[Terms];
      split(matrix.load_at(r, c), matrix.load_at(r, c + kLanes), term);
      for (int t = 0; t < Terms; ++t) store(line + t * kBlockWords, term[t]);
    }
  }
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
