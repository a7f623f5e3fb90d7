// Products of blocks by AVX-512's vdpbf16ps, of pairs of bfloat16 numbers in vectors:
//
//   c[n] <- fma(a[0], b[n][0], fma(a[1], b[n][1], c[n]))
//
// in float32, each fused addition rounded to nearest even; denormal operands count as zero and denormal results become
// zero. a is a pair of the left operand, one word read for all lanes, b a row of pairs of the right one.
//
// Up to kMostRows x 2 vectors of C stay in registers over the whole depth, one broadcast for two products. Rows are cut
// evenly, so that few are left to a product that waits for its own sums. A product of pairs is as fast as one of
// float32 numbers, and multiplies twice as many: the three products of `high` would take half as long again as
// float32's one.
//
// Order of sums: one chain, pair by pair. Where the instruction is not compiled in, ordinary vectors do the same
// arithmetic to the bit.
#pragma once

#include "cpu/block_pack.h"
#include "cpu/sparse_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

#if defined(__AVX512BF16__)

static inline vfloat add_product_of_pairs(vfloat c, vuint a, vuint b) {
  return (vfloat)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

#else

static inline vfloat without_denormals(vuint bits) {
  return (vfloat)(bits & ((bits & 0x7F800000u) != 0 ? splat<vuint>(~0u) : splat<vuint>(0x80000000u)));
}

static inline vfloat add_product_of_pairs(vfloat c, vuint a, vuint b) {
  c = without_denormals((vuint)c);
  const vfloat odd = fma(without_denormals(a & 0xFFFF0000u), without_denormals(b & 0xFFFF0000u), c);
  const vfloat both = fma(without_denormals(a << 16), without_denormals(b << 16), without_denormals((vuint)odd));
  return without_denormals((vuint)both);
}

#endif

class Multiplier {
 public:
  static constexpr int kMostTerms = 1;
  static constexpr int64_t kRowStep = 1;

  // Whether a batch is not so empty that float32, which leaves out what is zero in x, takes less time.
  static bool pays(const NetworkSpec& spec, const Batch& batch) {
    if (batch.samples == 0) return true;
    double products = 0;
    for (int l = 0; l < spec.layers; ++l)
      products += static_cast<double>(spec.layer[l].inputs() * spec.layer[l].out_channels);
    const int64_t inputs = spec.inputs(), outputs = spec.layer[0].out_channels;
    const double first = static_cast<double>(inputs * outputs);
    const Strided x{batch.x, batch.samples, inputs, batch.row_stride, batch.column_stride};
    const double listed = x.density() * time_of_entry(UnitPanels(outputs).width);
    return products - first + listed * first > 0.3 * products;
  }

  template <int Terms>
  void multiply(const BlockProduct& p) {
    static_assert(Terms <= kMostTerms);
    const int64_t parts = (p.rows + kMostRows - 1) / kMostRows;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * p.rows / parts;
      const auto rows = static_cast<int>((part + 1) * p.rows / parts - first);
      p.columns > kLanes ? of_rows<kMostRows, 2>(p, first, rows) : of_rows<kMostRows, 1>(p, first, rows);
    }
  }

  // Products of one register tile, without its reads and writes; returns how many multiplications and additions.
  static double multiply_adds(int64_t rounds) {
    vfloat sum[kMostRows] = {};
    vuint pairs = splat<vuint>(0x3F803F80u);
    for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 14
      for (int r = 0; r < kMostRows; ++r) {
        sum[r] = add_product_of_pairs(sum[r], pairs, pairs);
        __asm__ volatile("" : FASTSMC_IN_REGISTER(sum[r]));  // so that it is computed
      }
    return 2. * kMostRows * 2 * kLanes * static_cast<double>(rounds);
  }

 private:
  static constexpr int kMostRows = 14;  // 28 sums, two vectors of B and one broadcast, of 32 registers

  template <int Rows, int Columns>
  static void of_rows(const BlockProduct& p, int64_t first, int rows) {
    if constexpr (Rows > 1) {
      if (rows < Rows) return of_rows<Rows - 1, Columns>(p, first, rows);
    }
    float* const c = p.c + first * p.c_row;
    vfloat sum[Rows][Columns];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Columns; ++v)
        sum[r][v] = p.accumulate ? load<vfloat>(c + r * p.c_row + v * kLanes) : vfloat{};
    const uint32_t *left = p.left + first * kPairs, *right = p.right;
    for (int64_t pairs = (p.depth + 1) / 2; pairs > 0; pairs -= kPairs, left += kBlockWords, right += kBlockWords)
      for (int64_t k = 0; k < (pairs < kPairs ? pairs : kPairs); ++k) {
        vuint b[Columns];
        for (int v = 0; v < Columns; ++v) b[v] = load<vuint>(right + k * kEdge + v * kLanes);
#pragma GCC unroll 14
        for (int r = 0; r < Rows; ++r) {
          const vuint a = splat<vuint>(left[r * kPairs + k]);
          for (int v = 0; v < Columns; ++v) sum[r][v] = add_product_of_pairs(sum[r][v], a, b[v]);
        }
      }
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Columns; ++v) store(c + r * p.c_row + v * kLanes, sum[r][v]);
  }
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
