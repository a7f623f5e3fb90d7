// Products of matrices in shared memory on tensor cores, summed in float32.
//
//   highest   float32 as the sum of three bfloat16 numbers, six products: all that reach its last bit
//   high      float32 as the sum of two, three products, without small * small
//   medium    bfloat16 numbers, of which those from 2^128 (1 - 2^-9) up are infinite
//
// Only the last part is infinite or NaN where an operand is, and it meets the first of the other alone: infinity times
// a number is infinity, and finite operands of any size have finite parts. Where products of parts overflow with
// different signs, as they may if the whole product does, their sum is NaN.
//
// Operands stay float32 in shared memory, and are split as they come into registers: a network this small is read as
// often by columns as by rows, and copies of its weights would take the room of a larger one.
//
// Tensor cores cut off what they cannot add, so that long sums drift towards zero: they have the sum of one depth step
// alone, and a lane adds that to its own.
//
// A warp makes a strip of 16 rows by kStrip columns at a time. Each depth step reads its part of A once for the strip,
// and B once for the 16 rows. Rows whose length is 4 modulo 32 words are read without bank conflicts, columns by two
// lanes at a time.
#pragma once

#include <cmath>

#include "cuda/warp.h"

namespace fastsmc::cuda {

// Two operands in each word, the first in the lower half.
struct Bfloat16 {
  static constexpr int kDepth = 16, kPerWord = 2;
  static constexpr float kLargest = 0x1.FEp127f;

  // To the nearest, ties to even.
  FASTSMC_KERNEL static uint32_t pack(const float (&x)[2]) {
#if defined(__CUDACC__)
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(x[1]), "f"(x[0]));
    return word;
#else
    return half(x[0]) | half(x[1]) << 16;
#endif
  }
  FASTSMC_KERNEL static float value(uint32_t word, int e) {
    return bit_cast<float>(e == 0 ? word << 16 : word & 0xFFFF0000u);
  }

#if defined(__CUDACC__)
  __device__ __forceinline__ static void multiply(float* c, const uint32_t* a, const uint32_t* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
 private:
  static uint32_t half(float x) {
    const auto bits = bit_cast<uint32_t>(x);
    return x == x ? (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16 : 0x7FFFu;
  }
#endif
};

// Operands as sums of kParts numbers of a format.
template <class FormatOfParts, int kPartsOfOperand>
struct Split {
  using Format = FormatOfParts;
  static constexpr int kParts = kPartsOfOperand;
  static_assert(kParts <= 3, "what three parts leave is below a float32's last bit");

  // A lane's words of an operand, the largest part first.
  template <int kWords>
  struct Fragment {
    uint32_t part[kParts][kWords];

    FASTSMC_KERNEL void set(int word, float (&x)[Format::kPerWord]) {
      for (int p = 0; p < kParts; ++p) {
        float finite[Format::kPerWord];
        for (int e = 0; e < Format::kPerWord; ++e) finite[e] = fminf(fmaxf(x[e], -Format::kLargest), Format::kLargest);
        part[p][word] = Format::pack(p + 1 < kParts ? finite : x);
        for (int e = 0; e < Format::kPerWord; ++e) x[e] -= Format::value(part[p][word], e);
      }
    }
  };
};

using Highest = Split<Bfloat16, 3>;
using High = Split<Bfloat16, 2>;
using Medium = Split<Bfloat16, 1>;

// Element (i, j) is at[i * row + j * column].
struct Matrix {
  const float* at;
  int row, column;
  FASTSMC_KERNEL float operator()(int i, int j) const { return at[i * row + j * column]; }
};

constexpr int kStrip = 32;  // columns

// done(i, j, sum over k of a(i, k) b(k, j)) for `rows` by `columns` elements, by the lane that has the sum. Rows are a
// multiple of 16, columns of 8, depth of Format::kDepth: what is beyond the operands' own is memory that holds numbers.
template <class Operands, class Block, class Done>
FASTSMC_KERNEL void product(Block& block, Matrix a, Matrix b, int rows, int columns, int depth, const Done& done) {
  using Format = typename Operands::Format;
  constexpr int kTiles = kStrip / 8;
  struct Sums {
    float tile[kTiles][4];
  };
  const int across = (columns + kStrip - 1) / kStrip, strips = rows / 16 * across;
  each_warp(block, [&](auto& warp) {
    using Warp = std::decay_t<decltype(warp)>;
    for (int strip = warp.index(); strip < strips; strip += Block::kThreads / kWarp) {
      const int i0 = strip / across * 16, j0 = strip % across * kStrip;
      typename Warp::template Private<Sums> sums;
      typename Warp::template Private<Items<float, 4>> step;
      typename Warp::template Private<typename Operands::template Fragment<4>> left;
      typename Warp::template Private<typename Operands::template Fragment<2>> right;
      warp.each([&](int lane) { sums[lane] = Sums{}; });
      for (int k0 = 0; k0 < depth; k0 += Format::kDepth) {
        warp.each([&](int lane) {
          const Lane at(lane);
          for (int r = 0; r < 4; ++r) {
            const int i = i0 + at.a_row(r), k = k0 + at.template first<Format>(r / 2);
            float x[Format::kPerWord];
            for (int e = 0; e < Format::kPerWord; ++e) x[e] = a(i, k + e);
            left[lane].set(r, x);
          }
        });
#if defined(__CUDACC__)
#pragma unroll
#endif
        for (int tile = 0; tile < kTiles; ++tile) {
          if (j0 + 8 * tile >= columns) break;
          warp.each([&](int lane) {
            const Lane at(lane);
            for (int r = 0; r < 2; ++r) {
              const int j = j0 + 8 * tile + at.group, k = k0 + at.template first<Format>(r);
              float x[Format::kPerWord];
              for (int e = 0; e < Format::kPerWord; ++e) x[e] = b(k + e, j);
              right[lane].set(r, x);
            }
          });
          warp.each([&](int lane) { step[lane] = {}; });
          const auto multiply = [&](int p, int q) {  // the largest product last
            warp.template multiply<Format>([&](int lane) { return step[lane].item; },
                                           [&](int lane) { return left[lane].part[p]; },
                                           [&](int lane) { return right[lane].part[q]; });
          };
          FASTSMC_UNROLL
          for (int order = Operands::kParts - 1; order >= 0; --order) {
            FASTSMC_UNROLL
            for (int p = order; p >= 0; --p) multiply(p, order - p);
          }
          warp.each([&](int lane) {
            for (int i = 0; i < 4; ++i) sums[lane].tile[tile][i] += step[lane].item[i];
          });
        }
      }
      warp.each([&](int lane) {
        const Lane at(lane);
#if defined(__CUDACC__)
#pragma unroll
#endif
        for (int tile = 0; tile < kTiles; ++tile) {
          if (j0 + 8 * tile >= columns) break;
          for (int i = 0; i < 4; ++i) done(i0 + at.c_row(i), j0 + 8 * tile + at.c_column(i), sums[lane].tile[tile][i]);
        }
      });
    }
  });
}

}  // namespace fastsmc::cuda
