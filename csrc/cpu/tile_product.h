// Products of blocks on AMX tiles (tile.h).
//
// Register tile: 32 x 32 of C in four tiles, two of A, two of B. Products of terms t, u of the operands are made for
// t + u < Terms, along a path on which one operand changes at a time: 4 tile loads for 4 products, or 8 for 12. A
// product takes 16 cycles, a load 8 if it hits L1, so the products bound both if L2 delivers 43 bytes a cycle for two
// terms; with one term the loads of a step would need 64, so its sums are cut to kDepthSteps blocks, of which one
// operand then stays in L1. MLP 784-100-10 and 600 samples take 13,000 tile products per term product: 0.21 M cycles a
// particle at 1 term, 0.63 M at 2, where float32 at 64 operations a cycle takes 3.0 M. That is arithmetic, not a
// measurement.
//
// Order of sums: within a block the term products in the order of the path; within a tile product as tile.h says.
#pragma once

#include "common/network.h"
#include "cpu/block_pack.h"
#include "cpu/tile.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// The products of terms in their order, the small ones first.
template <int Terms>
struct TermPath;
template <>
struct TermPath<1> {
  static constexpr int kProducts = 1, kLeft[] = {0}, kRight[] = {0};
};
template <>
struct TermPath<2> {
  static constexpr int kProducts = 3, kLeft[] = {1, 0, 0}, kRight[] = {0, 0, 1};
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// f(number of the tile, row, column) for the tiles of C, numbered 2 row + column.
template <int Rows, int Columns, class F>
static inline void for_tiles(F f) {
  f(Number<0>{}, 0, 0);
  if constexpr (Columns == 2) f(Number<1>{}, 0, 1);
  if constexpr (Rows == 2) f(Number<2>{}, 1, 0);
  if constexpr (Rows == 2 && Columns == 2) f(Number<3>{}, 1, 1);
}

class Multiplier {
 public:
  static constexpr int kMostTerms = 2;
  static constexpr int64_t kRowStep = 16;

  static bool pays(const NetworkSpec&, const Batch&) { return true; }

  template <int Terms>
  void multiply(const BlockProduct& p) {
    if (p.rows > 16)
      p.columns > 16 ? multiply<Terms, 2, 2>(p) : multiply<Terms, 2, 1>(p);
    else
      p.columns > 16 ? multiply<Terms, 1, 2>(p) : multiply<Terms, 1, 1>(p);
  }

  // Products of one register tile, without its reads and writes; returns how many multiplications and additions.
  static double multiply_adds(int64_t rounds) {
    Multiplier multiplier;
    TileRegisters& tiles = multiplier.tiles_;
    const uint32_t zeros[256] = {};
    tiles.load<4>(zeros, 64);
    tiles.load<5>(zeros, 64);
    tiles.load<6>(zeros, 64);
    tiles.load<7>(zeros, 64);
    for_tiles<2, 2>([&](auto tile, int, int) { tiles.zero<decltype(tile)::value>(); });
    for (int64_t i = 0; i < rounds; ++i) multiplier.dot<2, 2>();
    return 2. * kEdge * kEdge * kEdge * static_cast<double>(rounds);
  }

 private:
  // Rows and columns in tiles.
  template <int Terms, int Rows, int Columns>
  void multiply(const BlockProduct& p) {
    for_tiles<Rows, Columns>([&](auto tile, int row, int column) {
      constexpr int kTileNumber = decltype(tile)::value;
      if (p.accumulate)
        tiles_.load<kTileNumber>(p.c + 16 * row * p.c_row + 16 * column, 4 * p.c_row);
      else
        tiles_.zero<kTileNumber>();
    });
    const uint32_t *left = p.left, *right = p.right;
    for (int64_t step = 0; step < blocks_of(p.depth); ++step, left += Terms * kBlockWords, right += Terms * kBlockWords)
      term_products<Terms, Rows, Columns>(left, right);
    for_tiles<Rows, Columns>([&](auto tile, int row, int column) {
      tiles_.store<decltype(tile)::value>(p.c + 16 * row * p.c_row + 16 * column, 4 * p.c_row);
    });
  }

  // Term products I, I + 1 ... of one block; tiles 4, 5 hold the left operand, 6, 7 the right one.
  template <int Terms, int Rows, int Columns, int I = 0>
  void term_products(const uint32_t* left, const uint32_t* right) {
    using Path = TermPath<Terms>;
    constexpr int before = I == 0 ? 0 : I - 1;
    if constexpr (I == 0 || Path::kLeft[I] != Path::kLeft[before]) {
      const uint32_t* from = left + Path::kLeft[I] * kBlockWords;
      tiles_.load<4>(from, 64);
      if constexpr (Rows == 2) tiles_.load<5>(from + 256, 64);
    }
    if constexpr (I == 0 || Path::kRight[I] != Path::kRight[before]) {
      const uint32_t* from = right + Path::kRight[I] * kBlockWords;
      tiles_.load<6>(from, 128);
      if constexpr (Columns == 2) tiles_.load<7>(from + 16, 128);
    }
    dot<Rows, Columns>();
    if constexpr (I + 1 < Path::kProducts) term_products<Terms, Rows, Columns, I + 1>(left, right);
  }

  template <int Rows, int Columns>
  void dot() {
    for_tiles<Rows, Columns>([&](auto tile, int, int) {
      constexpr int kTileNumber = decltype(tile)::value;
      tiles_.dot<kTileNumber, 4 + kTileNumber / 2, 6 + kTileNumber % 2>();
    });
  }

  TileRegisters tiles_;
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
