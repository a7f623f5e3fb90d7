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

// h of the layer below by rows, [panel of inputs][samples][w], of which a tile starts at sample `begin`.
struct Rows {
  const float* data;
  int64_t samples, begin;

  static int64_t width(int64_t inputs, int64_t panel) {
    const int64_t left = round_up_lanes(inputs) - panel * kPanel;
    return left < kPanel ? left : kPanel;
  }
  const float* panel(int64_t inputs, int64_t p) const { return data + p * kPanel * samples + begin * width(inputs, p); }
};

// Panels of h [panel][width][w] to rows, and zeros up to a multiple of kLanes inputs.
static void panels_to_rows(const float* h, int64_t width, Panels tile, float* rows) {
  for (int64_t p = 0; p < tile.count(); ++p) {
    const int columns = tile.columns(p);
    const float* panel = h + p * kPanel * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t j = i / kPanel, row = Rows::width(width, j);
      float* to = rows + j * kPanel * tile.samples + p * kPanel * row + i % kPanel;
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

// Panels of dz to one row per unit, [width][samples], whose sums are the gradient of the bias.
static void join_panels(const float* dz, int64_t width, Panels tile, float* joined, float* bias_grad) {
  for (int64_t unit = 0; unit < width; ++unit) {
    vfloat sum{};
    for (int64_t p = 0; p < tile.count(); ++p) {
      const int columns = tile.columns(p);
      const float* from = dz + p * kPanel * width + unit * columns * kLanes;
      for (int v = 0; v < columns; ++v, joined += kLanes) {
        const vfloat value = load<vfloat>(from + v * kLanes);
        sum += value;
        store(joined, value);
      }
    }
    bias_grad[unit] += static_cast<float>(sum_lanes(sum));
  }
}

// grad [out, in] += dz h^T; dz [out][samples].
static void add_weight_gradient(const Layer& layer, const float* dz, int64_t samples, Rows h, float* grad) {
  const int64_t inputs = layer.inputs(), outputs = layer.out_channels, whole = inputs / kLanes * kLanes;
  for (int64_t j = 0; j * kPanel < whole; ++j) {
    const int64_t left = whole - j * kPanel;
    const int columns = left < kPanel ? static_cast<int>(left / kLanes) : kColumns;
    multiply<Init::kAccumulate>({samples, dz, samples, 1, h.panel(inputs, j), Rows::width(inputs, j), grad + j * kPanel,
                                 inputs, columns, nullptr, h.panel(inputs, j + 1), 0},
                                outputs);
  }
  if (whole == inputs) return;
  // the last inputs fill no vector: their gradient is added from beside
  const int64_t j = inputs / kPanel, row = Rows::width(inputs, j);
  const float* b = h.panel(inputs, j) + (whole - j * kPanel);
  float edge[kRows * kLanes];
  for (int64_t r = 0; r < outputs; r += kRows) {
    const int64_t count = outputs - r < kRows ? outputs - r : kRows;
    multiply<Init::kZero>({samples, dz + r * samples, samples, 1, b, row, edge, kLanes, 1, nullptr, b, 0}, count);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = whole; i < inputs; ++i) grad[(r + k) * inputs + i] += edge[k * kLanes + i - whole];
  }
}

struct Dense {
  // floats kept for the backward pass beside the outputs, and needed while it runs, for a tile
  static int64_t memory(const Layer& layer, int64_t samples) { return layer.outputs() * samples; }
  static int64_t work(const Layer& layer, int64_t samples, bool) {
    return (layer.outputs() + round_up_lanes(layer.inputs())) * samples;
  }

  // One panel; memory is null where no backward pass follows.
  static void forward(const Layer& layer, const float* params, const float* h, int columns, float* z, float* memory,
                      float*) {
    const int64_t in = layer.inputs(), out = layer.out_channels, row = columns * kLanes;
    multiply<Init::kRowBias>({in, params, in, 1, h, row, z, row, columns, params + in * out, nullptr, 0}, out);
    if (layer.activation != Activation::kIdentity) activate(layer.activation, z, memory, out * row);
  }

  // delta is the gradient with respect to the outputs, and is overwritten; h is needed only where `rows` is not given;
  // below [panel][inputs][w] may be null, and may be h.
  static void backward(const Layer& layer, const float* params, Panels tile, const float* h, Rows rows, float* delta,
                       const float* memory, float* grad, float* below, float* work) {
    const int64_t in = layer.inputs(), out = layer.out_channels;
    if (layer.activation != Activation::kIdentity)
      for (int64_t i = 0; i < out * tile.samples; i += kLanes)
        store(delta + i, load<vfloat>(delta + i) * load<vfloat>(memory + i));
    float* joined = work;
    join_panels(delta, out, tile, joined, grad + in * out);
    if (rows.data == nullptr) {
      float* own = work + out * tile.samples;
      panels_to_rows(h, in, tile, own);
      rows = {own, tile.samples, 0};
    }
    add_weight_gradient(layer, joined, tile.samples, rows, grad);
    if (below == nullptr) return;
    for (int64_t p = 0; p < tile.count(); ++p) {
      const int columns = tile.columns(p);
      const int64_t row = columns * kLanes;
      multiply<Init::kZero>({out, params, 1, in, delta + p * kPanel * out, row, below + p * kPanel * in, row, columns,
                             nullptr, nullptr, 0},
                            in);
    }
  }
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
