// The eight tile registers of AMX, 16 rows of 64 bytes each, and the one product they are used for:
//
//   C[m][n] += sum over 16 pairs k of  A[m][2k] B[2k][n] + A[m][2k+1] B[2k+1][n]
//
// A holds 16 rows of 32 bfloat16 numbers; B 16 rows k of 16 pairs (B[2k][n], B[2k+1][n]); C 16 x 16 float32. Products
// are exact; even and odd terms are summed each in a chain of fused additions from zero, rounded to nearest even, then
// the two sums are added and the result is added to C. Denormal operands count as zero and denormal results become
// zero.
//
// Where AMX is not compiled in, the same class does the same arithmetic on ordinary vectors, so that what is built on
// it can be tested on any processor: to the bit, as long as no chain passes through denormal numbers, which are kept
// until it ends. The instructions are written out: GCC 12's intrinsics declare neither the memory that a tile load
// reads nor all of that which a configuration does.
#pragma once

#include "cpu/simd.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

// One at a time on a thread: the tiles are the processor's.
class TileRegisters {
 public:
  TileRegisters() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // the palette of eight whole tiles
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;  // bytes in a row
      config[48 + tile] = 16;      // rows
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileRegisters() { __asm__ volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  template <int Tile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(Tile));
  }
  // Rows are `stride` bytes apart.
  template <int Tile>
  void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  template <int C, int A, int B>
  void dot() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#else

class TileRegisters {
 public:
  template <int Tile>
  void zero() {
    memset(word_[Tile], 0, sizeof word_[Tile]);
  }
  template <int Tile>
  void load(const void* from, int64_t stride) {
    for (int m = 0; m < 16; ++m) memcpy(word_[Tile][m], static_cast<const char*>(from) + m * stride, 64);
  }
  template <int Tile>
  void store(void* to, int64_t stride) {
    for (int m = 0; m < 16; ++m) memcpy(static_cast<char*>(to) + m * stride, word_[Tile][m], 64);
  }
  template <int C, int A, int B>
  void dot() {
    dot(word_[C], word_[A], word_[B]);
  }

 private:
  using Words = uint32_t[16][16];

  static void dot(Words& c, const Words& a, const Words& b) {
    float b_even[16][16], b_odd[16][16];
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 16; ++n) {
        b_even[k][n] = number(b[k][n] << 16);
        b_odd[k][n] = number(b[k][n] & 0xFFFF0000u);
      }
    for (int m = 0; m < 16; ++m) {
      vfloat even{}, odd{};
      for (int k = 0; k < 16; ++k) {  // fused: a product alone may pass the range of float32
        even = fma(load_row(b_even[k]), splat<vfloat>(number(a[m][k] << 16)), even);
        odd = fma(load_row(b_odd[k]), splat<vfloat>(number(a[m][k] & 0xFFFF0000u)), odd);
      }
      float sum[16];
      const vfloat both = even + odd;
      memcpy(sum, &both, sizeof sum);
      for (int n = 0; n < 16; ++n) c[m][n] = bits(number(bits(number(c[m][n]) + number(bits(sum[n])))));
    }
  }

  static vfloat load_row(const float* from) {
    vfloat row;
    memcpy(&row, from, sizeof row);
    return row;
  }

  // Denormal numbers become zero.
  static float number(uint32_t word) {
    word &= (word & 0x7F800000u) != 0 ? 0xFFFFFFFFu : 0x80000000u;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
  }
  static uint32_t bits(float x) {
    uint32_t word;
    memcpy(&word, &x, sizeof word);
    return word;
  }

  uint32_t word_[8][16][16];
};

#endif

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
