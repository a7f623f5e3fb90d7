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
#include "cpu/active_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

static inline int64_t round_up_lanes(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

// h of the layer below by rows, [panel of inputs][samples][w], of which a tile starts at sample `begin`. Where there
// are lists of active samples, [panel of inputs][kTile samples], the rows of each are closed up.
struct Rows {
  const float* data;
  int64_t samples, begin;
  const int32_t* lists;

  static int64_t width(int64_t inputs, int64_t panel) {
    const int64_t left = round_up_lanes(inputs) - panel * kPanel;
    return left < kPanel ? left : kPanel;
  }
  static int64_t list_at(int64_t samples, int64_t panel, int64_t tile) {
    return (panel * ((samples + kTile - 1) / kTile) + tile) * Active::list_length(kTile);
  }
  const float* panel(int64_t inputs, int64_t p) const { return data + p * kPanel * samples + begin * width(inputs, p); }
  // Of the samples that follow the first `from` of `count`, up to kTile of them.
  Active active(int64_t p, int64_t from, int64_t count) const {
    const int64_t depth = count - from < kTile ? count - from : kTile;
    return {depth, lists == nullptr ? nullptr : lists + list_at(samples, p, (begin + from) / kTile)};
  }
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

// Panels of dz to one row per unit, [width][samples], whose sums are the gradient of the bias; whether all are finite.
static bool join_panels(const float* dz, int64_t width, Panels tile, float* joined, float* bias_grad) {
  double zero = 0;
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
    const double total = sum_lanes(sum);
    bias_grad[unit] += static_cast<float>(total);
    zero += 0 * total;
  }
  return zero == 0;
}

// The same with nothing left out, at `to`.
static Rows open_rows(Rows rows, int64_t inputs, int64_t samples, float* to) {
  for (int64_t j = 0; j * kPanel < inputs; ++j) {
    const int64_t row = Rows::width(inputs, j);
    for (int64_t s = 0; s < samples; s += kTile) {
      const Active active = rows.active(j, s, samples);
      const float* from = rows.panel(inputs, j) + s * row;
      float* block = to + j * kPanel * samples + s * row;
      if (active.all())
        memcpy(block, from, static_cast<size_t>(active.depth * row) * sizeof(float));
      else
        open_up(from, active, row, block);
    }
  }
  return {to, samples, 0, nullptr};
}

// c [rows][w] += the first `rows` of dz times columns of panel j of h, from b on.
__attribute__((always_inline)) static inline void add_product(Rows h, int64_t j, Product p, int64_t rows) {
  const float* after = p.next;
  const int64_t samples = p.depth;
  for (int64_t s = 0; s < samples; s += kTile) {
    const Active active = h.active(j, s, samples);
    p.depth = active.depth;
    p.next = s + kTile < samples ? p.b + kTile * p.b_row : after;
    multiply<Init::kAccumulate>(p, rows, active);
    p.advance(kTile);
  }
}

// grad [out, in] += dz h^T; dz [out][samples].
static void add_weight_gradient(const Layer& layer, const float* dz, int64_t samples, Rows h, float* grad) {
  const int64_t inputs = layer.inputs(), outputs = layer.out_channels, whole = inputs / kLanes * kLanes;
  for (int64_t j = 0; j * kPanel < whole; ++j) {
    const int64_t left = whole - j * kPanel;
    const int columns = left < kPanel ? static_cast<int>(left / kLanes) : kColumns;
    add_product(h, j,
                {samples, dz, samples, 1, h.panel(inputs, j), Rows::width(inputs, j), grad + j * kPanel, inputs,
                 columns, nullptr, h.panel(inputs, j + 1), 0},
                outputs);
  }
  if (whole == inputs) return;
  // the last inputs fill no vector: their gradient is added from beside
  const int64_t j = inputs / kPanel, row = Rows::width(inputs, j);
  const float* b = h.panel(inputs, j) + (whole - j * kPanel);
  for (int64_t r = 0; r < outputs; r += kRows) {
    const int64_t count = outputs - r < kRows ? outputs - r : kRows;
    float edge[kRows * kLanes] = {};
    add_product(h, j, {samples, dz + r * samples, samples, 1, b, row, edge, kLanes, 1, nullptr, b, 0}, count);
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

  // One panel, of whose inputs some are active; memory is null where no backward pass follows.
  static void forward(const Layer& layer, const float* params, const float* h, Active active, int columns, float* z,
                      float* memory, float*) {
    const int64_t in = layer.inputs(), out = layer.out_channels, row = columns * kLanes;
    multiply<Init::kRowBias>({in, params, in, 1, h, row, z, row, columns, params + in * out, nullptr, 0}, out, active);
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
    const bool finite = join_panels(delta, out, tile, joined, grad + in * out);
    float* own = work + out * tile.samples;
    if (rows.data == nullptr) {
      panels_to_rows(h, in, tile, own);
      rows = {own, tile.samples, 0, nullptr};
    } else if (!finite) {
      rows = open_rows(rows, in, tile.samples, own);
    }
    add_weight_gradient(layer, joined, tile.samples, rows, grad);
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
