// Log-likelihood and gradient of one particle's network over a packed chunk of the batch, in float32.
//
// A tile of samples goes forward through all layers and back, so that the scratch of a particle is the tile times the
// sum of the layers' outputs, whatever the batch. Gradients are summed in float32 within a tile and over tiles in
// order, the log-likelihood over tiles in float64.
//
// A chunk holds, for S = its samples rounded up to lanes (kLanes), with zeros for those that are missing:
//   x by panels  [panel][inputs][w]                        forward
//   targets      [panel][target width][w]                  int32 labels, or float values
//   x by rows    [panel of inputs][S][w]                   weight gradient of a dense first layer
#pragma once

#include "cpu/dense_kernel.h"
#include "cpu/loss_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int kMaxLayers = 64;
constexpr int64_t kTile = 128;
static_assert(kTile % kPanel == 0, "tiles are whole panels");

static int64_t target_width(const NetworkSpec& spec) {
  return spec.likelihood == Likelihood::kCategorical ? 1 : spec.outputs();
}

// Where the parts of a chunk lie.
struct FloatChunk {
  float *x_panels, *targets, *x_rows;
  int64_t samples;  // rounded up to lanes

  FloatChunk(const NetworkSpec& spec, const Chunk& chunk) : samples(round_up_lanes(chunk.samples)) {
    x_panels = reinterpret_cast<float*>(chunk.data);
    targets = x_panels + samples * spec.inputs();
    x_rows = targets + (chunk.has_targets ? samples * target_width(spec) : 0);
  }
};

static size_t chunk_bytes(const NetworkSpec& spec, int64_t samples, bool for_gradient, bool has_targets) {
  const int64_t rows = for_gradient && spec.layer[0].dense() ? round_up_lanes(spec.inputs()) : 0;
  const int64_t floats = spec.inputs() + (has_targets ? target_width(spec) : 0) + rows;
  return static_cast<size_t>(round_up_lanes(samples) * floats) * sizeof(float);
}

// Up to kLanes values of a row of x, zeros after them.
static inline vfloat load_row(const float* from, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) return load<vfloat>(from);
  vfloat v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i * stride];
  return v;
}

static void pack_x(const NetworkSpec& spec, const Batch& batch, const Chunk& chunk, const FloatChunk& to,
                   int64_t panel) {
  const int64_t inputs = spec.inputs(), first = panel * kPanel;
  const int columns = Panels{to.samples}.columns(panel);
  const bool with_rows = chunk.for_gradient && spec.layer[0].dense();
  for (int v = 0; v < columns; ++v)
    for (int64_t i = 0; i < inputs; i += kLanes) {
      const int64_t sample = first + v * kLanes, count = inputs - i < kLanes ? inputs - i : kLanes;
      const int64_t j = i / kPanel, row = Rows::width(inputs, j);
      vfloat square[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        square[k] = vfloat{};
        if (sample + k < chunk.samples)
          square[k] = load_row(batch.x + (chunk.begin + sample + k) * batch.row_stride + i * batch.column_stride,
                               batch.column_stride, count);
        if (with_rows) store(to.x_rows + j * kPanel * to.samples + (sample + k) * row + i % kPanel, square[k]);
      }
      transpose(square);
      float* panels = to.x_panels + first * inputs + i * columns * kLanes + v * kLanes;
      for (int64_t k = 0; k < count; ++k) store(panels + k * columns * kLanes, square[k]);
    }
}

static void pack_targets(const NetworkSpec& spec, const Batch& batch, const Chunk& chunk, const FloatChunk& to,
                         int64_t panel) {
  const int64_t first = panel * kPanel, width = target_width(spec);
  const int64_t row = Panels{to.samples}.columns(panel) * kLanes;
  float* targets = to.targets + first * width;
  for (int64_t k = 0; k < width; ++k)
    for (int64_t s = 0; s < row; ++s) {
      const int64_t at = chunk.begin + first + s;
      const bool real = first + s < chunk.samples;
      if (batch.labels != nullptr) {
        const int32_t label = real ? static_cast<int32_t>(batch.labels[at]) : 0;
        memcpy(targets + s, &label, sizeof label);
      } else {
        targets[k * row + s] = real ? batch.targets[at * width + k] : 0.f;
      }
    }
}

static void pack(const NetworkSpec& spec, const Batch& batch, const Chunk& chunk, int64_t tile) {
  const FloatChunk to(spec, chunk);
  const int64_t first = tile * kTile / kPanel, panels = Panels{to.samples}.count();
  for (int64_t panel = first; panel < panels && panel < first + kTile / kPanel; ++panel) {
    pack_x(spec, batch, chunk, to, panel);
    if (chunk.has_targets) pack_targets(spec, batch, chunk, to, panel);
  }
}

static size_t scratch_bytes(const NetworkSpec& spec) {
  int64_t floats = 0, work = 0;
  for (int l = 0; l < spec.layers; ++l) {
    const Layer& layer = spec.layer[l];
    floats += layer.outputs() * kTile + Dense::memory(layer, kTile);
    const int64_t needed = Dense::work(layer, kTile);
    if (needed > work) work = needed;
  }
  return static_cast<size_t>(floats + work) * sizeof(float);
}

static void write_outputs(const float* z, int64_t width, int columns, int64_t valid, float* to) {
  const int64_t row = columns * kLanes, count = valid < row ? valid : row;
  for (int64_t sample = 0; sample < count; ++sample)
    for (int64_t c = 0; c < width; ++c) to[sample * width + c] = z[c * row + sample];
}

static double particle(const NetworkSpec& spec, const Chunk& chunk, Tiles tiles, const float* params, float* grad,
                       float* outputs, char* scratch) {
  const FloatChunk packed(spec, chunk);
  const int64_t inputs = spec.inputs(), num_outputs = spec.outputs();
  float *output[kMaxLayers], *memory[kMaxLayers], *work = reinterpret_cast<float*>(scratch);
  int64_t offset[kMaxLayers], at = 0;
  for (int l = 0; l < spec.layers; ++l) {
    const Layer& layer = spec.layer[l];
    offset[l] = at;
    at += layer.num_params();
    output[l] = work;
    memory[l] = output[l] + layer.outputs() * kTile;
    work = memory[l] + Dense::memory(layer, kTile);
  }

  double log_likelihood = 0;
  const int last = spec.layers - 1;
  for (int64_t begin = tiles.begin * kTile; begin < tiles.end * kTile && begin < chunk.samples; begin += kTile) {
    const int64_t left = packed.samples - begin;
    const Panels tile{left < kTile ? left : kTile};
    const float* x = packed.x_panels + begin * inputs;
    for (int64_t p = 0; p < tile.count(); ++p) {
      const int64_t first = p * kPanel, valid = chunk.samples - begin - first;
      const int columns = tile.columns(p);
      const float* h = x + first * inputs;
      for (int l = 0; l < spec.layers; ++l) {
        const Layer& layer = spec.layer[l];
        float* z = output[l] + first * layer.outputs();
        float* kept = grad != nullptr ? memory[l] + Dense::memory(layer, first) : nullptr;
        Dense::forward(layer, params + offset[l], h, columns, z, kept);
        h = z;
      }
      float* z = output[last] + first * num_outputs;
      if (outputs != nullptr)
        write_outputs(z, num_outputs, columns, valid, outputs + (begin + first) * num_outputs);
      else
        log_likelihood += panel_loss(spec, z, columns, packed.targets + (begin + first) * target_width(spec), valid);
    }
    if (grad == nullptr) continue;
    for (int l = last; l >= 0; --l) {
      const Rows rows = l > 0 ? Rows{} : Rows{packed.x_rows, packed.samples, begin};
      Dense::backward(spec.layer[l], params + offset[l], tile, l > 0 ? output[l - 1] : x, rows, output[l], memory[l],
                      grad + offset[l], l > 0 ? output[l - 1] : nullptr, work);
    }
  }
  return log_likelihood;
}

static bool serves(const NetworkSpec& spec) {
  for (int l = 0; l < spec.layers; ++l)
    if (!spec.layer[l].dense()) return false;
  return spec.layers <= kMaxLayers;
}

static const NetworkKernels network_kernels = {Precision::kHighest, kTile, kMaxLayers,    serves,
                                               chunk_bytes,         pack,  scratch_bytes, particle};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
