// The micro-kernel of every float32 product, C[rows, samples] = start + sum over k of a(row, k) B[k, samples]: samples
// are vector lanes, a register tile of kRows x kColumns accumulators, one broadcast of a for kColumns multiplications.
//
// A panel is kPanel samples side by side (fewer, a multiple of kLanes, at the end of a batch); whatever belongs to
// samples is stored as [panel][unit][samples of the panel], so activations, pooling and loss are vertical, and no
// weight is packed. B is read kDepth rows at a time, so that a block of it stays in L1 while all rows of C pass, and
// the next block is fetched meanwhile.
#pragma once

#include "cpu/simd.h"

#if FASTSMC_USE_AVX512
#define FASTSMC_IN_REGISTER(x) "+v"(x)
#elif defined(__SSE2__) && FASTSMC_VECTOR_BYTES <= 32
#define FASTSMC_IN_REGISTER(x) "+x"(x)
#else
#define FASTSMC_IN_REGISTER(x) "+m"(x)
#endif

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int kRows = 6;
#if FASTSMC_VECTOR_BYTES == 64
constexpr int kColumns = 4;  // 24 accumulators, 4 of B, one broadcast, of 32 registers
#else
constexpr int kColumns = 2;  // 12 + 2 + 1 of 16
#endif
constexpr int64_t kPanel = kColumns * kLanes;
constexpr int64_t kDepth = 64;  // terms in one chain of additions, whose rounding grows with its length
constexpr int64_t kTile = 64;   // samples, the unit in which work is shared out
static_assert(kTile % kPanel == 0 && kTile <= kDepth, "tiles are whole panels, and one chain of additions");

enum class Init { kZero, kRowBias, kAccumulate };

// Operands: c[row, :] = start + sum over k < depth of a[row * a_row + k * a_column] b[k * b_row, :], `columns` vectors
// wide. `next` is what b will be when this product is done, fetched at next_step floats per term.
struct Product {
  int64_t depth;
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  int columns;
  const float* bias;
  const float* next;
  int64_t next_step;

  static constexpr int64_t images = 1, a_image = 0, b_image = 0;
  int64_t a_at(int64_t k) const { return k * a_column; }
  int64_t b_at(int64_t k) const { return k * b_row; }
  void advance(int64_t terms) {
    a += terms * a_column;
    b += terms * b_row;
  }
};

// The place of a term in a and b.
struct Term {
  int32_t a, b;
};

// The same summed over `images`, or panels of samples, that are a_image and b_image apart.
struct BlockedProduct : Product {
  int64_t images, a_image, b_image;
};

// That with terms that lie anywhere.
struct ImageProduct : BlockedProduct {
  const Term* terms;

  int64_t a_at(int64_t k) const { return terms[k].a; }
  int64_t b_at(int64_t k) const { return terms[k].b; }
};

template <class P, int Rows, int Columns, Init Start>
static void micro_kernel(const P& p) {
  vfloat sum[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Columns; ++v) sum[r][v] = Start == Init::kRowBias ? splat<vfloat>(p.bias[r]) : vfloat{};
  const P q = p;  // so that no store can change it
  const float *a = q.a, *b = q.b, *next = q.next;
  for (int64_t i = 0; i < q.images; ++i, a += q.a_image, b += q.b_image)
    for (int64_t k = 0; k < q.depth; ++k, next += q.next_step) {
      __builtin_prefetch(next);
      vfloat column[Columns];
#pragma GCC unroll 4
      for (int v = 0; v < Columns; ++v) column[v] = load<vfloat>(b + q.b_at(k) + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const vfloat factor = splat<vfloat>(a[q.a_at(k) + r * q.a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < Columns; ++v) sum[r][v] = fma(factor, column[v], sum[r][v]);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Columns; ++v) {
      float* c = p.c + r * p.c_row + v * kLanes;
      store(c, Start == Init::kAccumulate ? load<vfloat>(c) + sum[r][v] : sum[r][v]);
    }
}

template <class P>
using MicroKernel = void (*)(const P&);

template <class P, int Columns, Init Start>
constexpr MicroKernel<P> kMicroKernelsByRows[kRows] = {
    micro_kernel<P, 1, Columns, Start>, micro_kernel<P, 2, Columns, Start>, micro_kernel<P, 3, Columns, Start>,
    micro_kernel<P, 4, Columns, Start>, micro_kernel<P, 5, Columns, Start>, micro_kernel<P, 6, Columns, Start>};

template <class P, Init Start>
constexpr const MicroKernel<P>* kMicroKernels[kColumns] = {
    kMicroKernelsByRows<P, 1, Start>,
    kMicroKernelsByRows<P, 2, Start>,
#if FASTSMC_VECTOR_BYTES == 64
    kMicroKernelsByRows<P, 3, Start>,
    kMicroKernelsByRows<P, 4, Start>,
#endif
};

// All rows of C, kRows at a time at most and as evenly as can be, since few rows do not fill the pipeline; each call
// fetches its share of the next block.
template <Init Start, class P>
static inline void multiply_rows(P p, int64_t rows) {
  const MicroKernel<P>* kernels = kMicroKernels<P, Start>[p.columns - 1];
  const int64_t calls = (rows + kRows - 1) / kRows;
  const auto least = static_cast<int>(rows / calls);
  const int64_t larger = rows - calls * least;  // calls of one row more
  p.next_step = (p.columns * kLanes + calls - 1) / calls;
  for (int64_t call = 0; call < calls; ++call) {
    const int count = least + (call < larger ? 1 : 0);
    kernels[count - 1](p);
    p.a += count * p.a_row;
    p.c += count * p.c_row;
    p.next += p.next_step * p.depth * p.images;
    if (Start == Init::kRowBias) p.bias += count;
  }
}

// The whole product, kDepth terms at a time. Always inline, as is what calls it: a copy of a product that was just made
// would wait for its parts to be written, as long as a small product takes.
template <Init Start, class P>
__attribute__((always_inline)) static inline void multiply(P p, int64_t rows) {
  const int64_t depth = p.depth;
  const float* after = p.next != nullptr ? p.next : p.b + depth * p.b_row;
  p.depth = depth < kDepth ? depth : kDepth;
  p.next = depth <= kDepth ? after : p.b + kDepth * p.b_row;
  multiply_rows<Start>(p, rows);
  for (int64_t k = kDepth; k < depth; k += kDepth) {
    p.advance(kDepth);
    p.depth = depth - k < kDepth ? depth - k : kDepth;
    p.next = k + kDepth < depth ? p.b + kDepth * p.b_row : after;
    multiply_rows<Init::kAccumulate>(p, rows);
  }
}

// The arithmetic of a register tile without its reads and writes, which bounds every product; returns how many
// multiplications and additions it was.
static double multiply_adds(int64_t rounds) {
  vfloat sum[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kColumns; ++v) sum[r][v] = splat<vfloat>(static_cast<float>(r * kColumns + v));
  const vfloat factor = splat<vfloat>(.5f), column = splat<vfloat>(1.f);
  for (int64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kColumns; ++v) {
        sum[r][v] = fma(factor, sum[r][v], column);
        __asm__ volatile("" : FASTSMC_IN_REGISTER(sum[r][v]));  // so that it is computed
      }
  }
  return 2. * kRows * kColumns * kLanes * static_cast<double>(rounds);
}

// Samples [begin, begin + samples) of something, panel by panel; samples is a multiple of kLanes.
struct Panels {
  int64_t samples;

  int64_t count() const { return (samples + kPanel - 1) / kPanel; }
  int columns(int64_t panel) const {
    const int64_t left = samples - panel * kPanel;
    return left < kPanel ? static_cast<int>(left / kLanes) : kColumns;
  }
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
