// A fully connected layer of one particle over a tile of samples, all by the one micro-kernel:
//
//   forward          z   = b + W h            a = W[row, k]       B = panel of h
//   input gradient   dh  = W^T dz             a = W[k, row]       B = panel of dz
//   weight gradient  dW += dz h^T             a = dz[row, sample] B = h by rows, [sample][up to kPanel inputs]
//
// Memory traffic of a tile: W read once per panel and pass, dW read and written once; both stay in L2 for up to about
// 100,000 weights.
#pragma once

#include "common/network.h"
#include "cpu/activation_kernel.h"
#include "cpu/micro_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

static inline int64_t round_up_lanes(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

// h of the layer below by rows, [tile][panel of inputs][samples of the tile][w].
struct Rows {
  const float* data;
  int64_t samples, inputs;

  static int64_t width(int64_t inputs, int64_t panel) {
    const int64_t left = round_up_lanes(inputs) - panel * kPanel;
    return left < kPanel ? left : kPanel;
  }
  // Where a panel starts in the tile of sample s, of which there are `samples`.
  static int64_t at(int64_t samples, int64_t inputs, int64_t s, int64_t panel) {
    return s * round_up_lanes(inputs) + panel * kPanel * depth(samples, s);
  }
  static int64_t depth(int64_t samples, int64_t s) { return samples - s < kTile ? samples - s : kTile; }

  const float* panel(int64_t s, int64_t j) const { return data + at(samples, inputs, s, j); }
};

// Panels of h [panel][width][w] to rows, and zeros up to a multiple of kLanes inputs.
static void panels_to_rows(const float* h, int64_t width, Panels tile, float* rows) {
  for (int64_t p = 0; p < tile.count(); ++p) {
    const int columns = tile.columns(p);
    const int64_t first = p * kPanel, s = first / kTile * kTile;
    const float* panel = h + first * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t j = i / kPanel, row = Rows::width(width, j);
      float* to = rows + Rows::at(tile.samples, width, s, j) + (first - s) * row + i % kPanel;
      for (int v = 0; v < columns; ++v) {
        vfloat square[kLanes];
        for (int k = 0; k < kLanes; ++k)
          square[k] = i + k < width ? load<vfloat>(panel + (i + k) * columns * kLanes + v * kLanes) : vfloat{};
        transpose(square);
        for (int k = 0; k < kLanes; ++k) store(to + (v * kLanes + k) * row, square[k]);
      }
    }
  }
}

// c [rows][w] += `rows` units of dz [panel][units][samples], from `first` on, times columns of panel j of h, from
// `column` on.
__attribute__((always_inline)) static inline void add_product(Rows h, int64_t j, int64_t column, const float* dz,
                                                              int64_t units, int64_t first, int64_t rows, float* c,
                                                              int64_t c_row, int columns) {
  const int64_t b_row = Rows::width(h.inputs, j);
  for (int64_t s = 0; s < h.samples; s += kTile) {
    const int64_t after = s + kTile < h.samples ? s + kTile : 0, depth = Rows::depth(h.samples, s);
    const float* next = h.panel(after, after > 0 ? j : j + 1) + column;
    const auto add = [&](int64_t from, int64_t width, int64_t images) {
      const float *a = dz + (s + from) * units + first * width, *b = h.panel(s, j) + from * b_row + column;
      const Product panel{width, a, width, 1, b, b_row, c, c_row, columns, nullptr, next, 0};
      multiply_rows<Init::kAccumulate>(BlockedProduct{panel, images, units * width, width * b_row}, rows);
    };
    const int64_t whole = depth / kPanel, rest = depth % kPanel;
    if (whole > 0) add(0, kPanel, whole);
    if (rest > 0) add(whole * kPanel, rest, 1);
  }
}

// grad [out, in] += dz h^T; dz [panel][out][w].
static void add_weight_gradient(const Layer& layer, const float* dz, Rows h, float* grad) {
  const int64_t inputs = layer.inputs(), outputs = layer.out_channels, whole = inputs / kLanes * kLanes;
  for (int64_t j = 0; j * kPanel < whole; ++j) {
    const int64_t left = whole - j * kPanel;
    const int columns = left < kPanel ? static_cast<int>(left / kLanes) : kColumns;
    add_product(h, j, 0, dz, outputs, 0, outputs, grad + j * kPanel, inputs, columns);
  }
  if (whole == inputs) return;
  // the last inputs fill no vector: their gradient is added from beside
  const int64_t j = inputs / kPanel;
  for (int64_t r = 0; r < outputs; r += kRows) {
    const int64_t count = outputs - r < kRows ? outputs - r : kRows;
    float edge[kRows * kLanes] = {};
    add_product(h, j, whole - j * kPanel, dz, outputs, r, count, edge, kLanes, 1);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = whole; i < inputs; ++i) grad[(r + k) * inputs + i] += edge[k * kLanes + i - whole];
  }
}

struct Dense {
  // floats kept for the backward pass beside the outputs, and needed while it runs, for a tile
  static int64_t memory(const Layer& layer, int64_t samples) { return layer.outputs() * samples; }
  static int64_t work(const Layer& layer, int64_t samples, bool) { return round_up_lanes(layer.inputs()) * samples; }

  // One panel; memory is null where no backward pass follows.
  static void forward(const Layer& layer, const float* params, const float* h, int columns, float* z, float* memory,
                      float*) {
    const int64_t in = layer.inputs(), out = layer.out_channels, row = columns * kLanes;
    multiply<Init::kRowBias>(Product{in, params, in, 1, h, row, z, row, columns, params + in * out, nullptr, 0}, out);
    activate(layer, columns, z, memory);
  }

  // What follows the product.
  static void activate(const Layer& layer, int columns, float* z, float* memory) {
    if (layer.activation == Activation::kIdentity) return;
    FASTSMC_LEVEL::activate(layer.activation, z, memory, layer.out_channels * columns * kLanes);
  }

  // delta [panel][out][w] before the activation, whose sums are added to the gradient of the bias; whether all are
  // finite.
  static bool deactivate(const Layer& layer, Panels tile, float* delta, const float* memory, float* grad) {
    const int64_t out = layer.out_channels;
    const bool active = layer.activation != Activation::kIdentity;
    float* bias_grad = grad + layer.inputs() * out;
    float zero = 0;
    for (int64_t unit = 0; unit < out; ++unit) {
      vfloat sum{};
      for (int64_t p = 0; p < tile.count(); ++p) {
        const int64_t w = tile.columns(p) * kLanes, first = p * kPanel * out + unit * w;
        for (int64_t at = first; at < first + w; at += kLanes) {
          vfloat value = load<vfloat>(delta + at);
          if (active) store(delta + at, value *= load<vfloat>(memory + at));
          sum += value;
        }
      }
      const float total = sum_of(sum);
      bias_grad[unit] += total;
      zero += 0 * total;
    }
    return zero == 0;
  }

  // delta is the gradient with respect to the outputs, and is overwritten; h is needed only where `rows` is not given;
  // below [panel][inputs][w] may be null, and may be h.
  static void backward(const Layer& layer, const float* params, Panels tile, const float* h, Rows rows, float* delta,
                       const float* memory, float* grad, float* below, float* work) {
    const int64_t in = layer.inputs(), out = layer.out_channels;
    deactivate(layer, tile, delta, memory, grad);
    if (rows.data == nullptr) {
      panels_to_rows(h, in, tile, work);
      rows = {work, tile.samples, in};
    }
    add_weight_gradient(layer, delta, rows, grad);
    if (below == nullptr) return;
    for (int64_t p = 0; p < tile.count(); ++p) {
      const int columns = tile.columns(p);
      const int64_t row = columns * kLanes;
      multiply<Init::kZero>(Product{out, params, 1, in, delta + p * kPanel * out, row, below + p * kPanel * in, row,
                                    columns, nullptr, nullptr, 0},
                            in);
    }
  }
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
