// Log-likelihood and gradient of one particle's network over a packed chunk of the batch, in float32.
//
// A stretch of samples (of images: as many as fit L2) goes forward through all layers and back, so that the
// scratch of a particle is the stretch times the sum of the layers' outputs, whatever the batch. Gradients are summed
// in float32 within a stretch and over stretches in order, the log-likelihood over panels in float64.
//
// A chunk holds, for S = its samples rounded up to lanes (kLanes), with zeros for those that are missing:
//   x by panels  [panel][inputs][w]                        forward
//   targets      [panel][target rows][w]                   int32 labels or float values, and weights: see target_rows
//   x by rows    [panel of inputs][S][w]                   weight gradient of a dense first layer
//   lists        [panel][1 + inputs]                       active inputs of each panel, for a dense first layer
//   row lists    [panel of inputs][tile][1 + kTile]        active samples of x by rows
#pragma once

#include "cpu/convolution_kernel.h"
#include "cpu/dense_kernel.h"
#include "cpu/loss_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int64_t kTilesInSum = 8;
constexpr int64_t kStretch = 128;
constexpr int64_t kStretchBytes = 1 << 20;  // of the activations of a network with convolutions, which stay in L2
static_assert(kStretch % kTile == 0, "stretches are whole tiles");

// What a kind of layer is to the passes over a network: see Dense.
struct LayerKernels {
  int64_t (*memory)(const Layer&, int64_t samples);
  int64_t (*work)(const Layer&, int64_t samples, bool with_below);
  void (*forward)(const Layer&, const float* params, const float* h, Active, int columns, float* z, float* memory,
                  float* work);
  void (*backward)(const Layer&, const float* params, Panels tile, const float* h, Rows rows, float* delta,
                   const float* memory, float* grad, float* below, float* work);
};

template <class L>
constexpr LayerKernels kLayerKernels = {L::memory, L::work, L::forward, L::backward};

static const LayerKernels& kernels_of(const Layer& layer) {
  static constexpr LayerKernels kByKind[] = {kLayerKernels<Dense>, kLayerKernels<Convolution>};
  return kByKind[static_cast<int>(layer.kind)];
}

// Floats of a layer's outputs, and of what is kept beside them.
static int64_t kept_floats(const Layer& layer, int64_t samples) {
  return layer.outputs() * samples + kernels_of(layer).memory(layer, samples);
}

// Networks of dense layers alone, which every way of computing knows.
static bool serves(const NetworkSpec& spec) {
  for (int l = 0; l < spec.layers; ++l)
    if (!spec.layer[l].dense()) return false;
  return true;
}

// Samples that go forward and back together: kStretch, or as many as fit kStretchBytes where there are images.
static int64_t stretch_of(const NetworkSpec& spec) {
  if (serves(spec)) return kStretch;
  int64_t bytes = 0, samples = kStretch;
  for (int l = 0; l < spec.layers; ++l)
    bytes += kept_floats(spec.layer[l], kStretch) * static_cast<int64_t>(sizeof(float));
  for (; samples > kPanel && bytes > kStretchBytes; samples /= 2) bytes /= 2;
  return samples;
}

// Where the parts of a chunk lie, in words of 4 bytes. A convolution reads a pixel for many of its outputs, and needs
// neither rows nor lists.
struct FloatChunk {
  int64_t inputs, samples;  // samples rounded up to lanes
  bool dense, with_rows;
  int64_t targets_at, rows_at, lists_at, row_lists_at, words;
  float* data;

  FloatChunk(const NetworkSpec& spec, const Chunk& chunk)
      : inputs(spec.inputs()),
        samples(round_up_lanes(chunk.samples)),
        dense(spec.layer[0].dense()),
        with_rows(dense && chunk.for_gradient),
        data(reinterpret_cast<float*>(chunk.data)) {
    targets_at = samples * inputs;
    rows_at = targets_at + samples * target_rows(spec, chunk);
    lists_at = rows_at + (with_rows ? samples * round_up_lanes(inputs) : 0);
    row_lists_at = lists_at + (dense ? Panels{samples}.count() * Active::list_length(inputs) : 0);
    words = row_lists_at + (with_rows ? Rows::list_at(samples, input_panels(), 0) : 0);
  }

  int64_t input_panels() const { return (inputs + kPanel - 1) / kPanel; }
  float* x_panels(int64_t first) const { return data + first * inputs; }
  float* targets(int64_t first_row) const { return data + targets_at + first_row; }
  int32_t* list(int64_t panel) const { return ints(lists_at + panel * Active::list_length(inputs)); }
  Active active(int64_t panel) const { return {inputs, dense ? list(panel) : nullptr}; }
  Rows rows(int64_t begin) const {
    return with_rows ? Rows{data + rows_at, samples, begin, ints(row_lists_at)} : Rows{};
  }
  float* rows_of(int64_t input_panel, int64_t sample) const {
    return data + rows_at + input_panel * kPanel * samples + sample * Rows::width(inputs, input_panel);
  }
  int32_t* row_list(int64_t input_panel, int64_t tile) const {
    return ints(row_lists_at + Rows::list_at(samples, input_panel, tile));
  }

 private:
  int32_t* ints(int64_t at) const { return reinterpret_cast<int32_t*>(data + at); }
};

static size_t chunk_bytes(const NetworkSpec& spec, const Chunk& chunk) {
  return static_cast<size_t>(FloatChunk(spec, chunk).words) * sizeof(float);
}

// Up to kLanes values of a row of x, zeros after them.
static inline vfloat load_row(const float* from, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) return load<vfloat>(from);
  vfloat v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i * stride];
  return v;
}

static void pack_x(const Batch& batch, const Chunk& chunk, const FloatChunk& to, int64_t panel) {
  const int64_t inputs = to.inputs, first = panel * kPanel;
  const int columns = Panels{to.samples}.columns(panel);
  for (int v = 0; v < columns; ++v)
    for (int64_t i = 0; i < inputs; i += kLanes) {
      const int64_t sample = first + v * kLanes, count = inputs - i < kLanes ? inputs - i : kLanes;
      const int64_t j = i / kPanel;
      vfloat square[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        square[k] = vfloat{};
        if (sample + k < chunk.samples)
          square[k] = load_row(batch.x + (chunk.begin + sample + k) * batch.row_stride + i * batch.column_stride,
                               batch.column_stride, count);
        if (to.with_rows) store(to.rows_of(j, sample + k) + i % kPanel, square[k]);
      }
      transpose(square);
      float* panels = to.x_panels(first) + i * columns * kLanes + v * kLanes;
      for (int64_t k = 0; k < count; ++k) store(panels + k * columns * kLanes, square[k]);
    }
  if (to.dense) close_up(to.x_panels(first), inputs, columns * kLanes, to.list(panel));
}

// The targets of `row` samples from `first` of the chunk on, [target rows][row].
static void pack_targets(const NetworkSpec& spec, const Batch& batch, const Chunk& chunk, int64_t first, int64_t row,
                         float* targets) {
  const int64_t width = target_width(spec);
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
  if (!chunk.has_weights) return;
  for (int64_t s = 0; s < row; ++s)
    targets[width * row + s] = first + s < chunk.samples ? batch.weights[chunk.begin + first + s] : 0.f;
}

static void pack(const NetworkSpec& spec, const Batch& batch, const Chunk& chunk, int64_t tile) {
  const FloatChunk to(spec, chunk);
  const int64_t first = tile * kTile / kPanel, panels = Panels{to.samples}.count();
  for (int64_t panel = first; panel < panels && panel < first + kTile / kPanel; ++panel) {
    pack_x(batch, chunk, to, panel);
    if (!chunk.has_targets) continue;
    const int64_t begin = panel * kPanel, row = Panels{to.samples}.columns(panel) * kLanes;
    pack_targets(spec, batch, chunk, begin, row, to.targets(begin * target_rows(spec, chunk)));
  }
  if (!to.with_rows) return;
  const int64_t begin = tile * kTile, depth = to.samples - begin < kTile ? to.samples - begin : kTile;
  for (int64_t j = 0; j < to.input_panels(); ++j)
    close_up(to.rows_of(j, begin), depth, Rows::width(to.inputs, j), to.row_list(j, tile));
}

static size_t scratch_bytes(const NetworkSpec& spec) {
  const int64_t stretch = stretch_of(spec);
  int64_t floats = 0, work = 0;
  for (int l = 0; l < spec.layers; ++l) {
    floats += kept_floats(spec.layer[l], stretch);
    const int64_t needed = kernels_of(spec.layer[l]).work(spec.layer[l], stretch, l > 0);
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
  const int64_t inputs = spec.inputs(), num_outputs = spec.outputs(), length = stretch_of(spec);
  const int64_t num_targets = target_rows(spec, chunk);
  float *output[kMaxLayers], *memory[kMaxLayers], *work = reinterpret_cast<float*>(scratch);
  int64_t offset[kMaxLayers], at = 0;
  for (int l = 0; l < spec.layers; ++l) {
    const Layer& layer = spec.layer[l];
    offset[l] = at;
    at += layer.num_params();
    output[l] = work;
    memory[l] = output[l] + layer.outputs() * length;
    work = output[l] + kept_floats(layer, length);
  }

  double log_likelihood = 0;
  const int last = spec.layers - 1;
  const int64_t end = tiles.end * kTile < packed.samples ? tiles.end * kTile : packed.samples;
  bool as_packed = true;  // what was left out is multiplied where a weight may be infinite
  for (int64_t begin = tiles.begin * kTile; begin < end && as_packed; begin += kPanel)
    as_packed = packed.active(begin / kPanel).all();
  if (!as_packed) as_packed = all_finite(params, inputs * spec.layer[0].out_channels);
  for (int64_t begin = tiles.begin * kTile; begin < end; begin += length) {
    const int64_t left = end - begin;
    const Panels tile{left < length ? left : length};
    for (int64_t p = 0; p < tile.count(); ++p) {
      const int64_t first = p * kPanel, valid = chunk.samples - begin - first;
      const int columns = tile.columns(p);
      const float* h = packed.x_panels(begin + first);
      Active active = packed.active(begin / kPanel + p);
      if (!as_packed && !active.all()) {
        open_up(h, active, columns * kLanes, work);
        h = work;
        active = {};
      }
      for (int l = 0; l < spec.layers; ++l) {
        const Layer& layer = spec.layer[l];
        float* z = output[l] + first * layer.outputs();
        float* kept = grad != nullptr ? memory[l] + kernels_of(layer).memory(layer, first) : nullptr;
        kernels_of(layer).forward(layer, params + offset[l], h, active, columns, z, kept, work);
        h = z;
        active = {};
      }
      float* z = output[last] + first * num_outputs;
      if (outputs != nullptr)
        write_outputs(z, num_outputs, columns, valid, outputs + (begin + first) * num_outputs);
      else
        log_likelihood +=
            panel_loss(spec, z, columns, packed.targets((begin + first) * num_targets), chunk.has_weights, valid);
    }
    if (grad == nullptr) continue;
    for (int l = last; l >= 0; --l) {
      const Layer& layer = spec.layer[l];
      const float* h = l > 0 ? output[l - 1] : packed.x_panels(begin);
      kernels_of(layer).backward(layer, params + offset[l], tile, h, l > 0 ? Rows{} : packed.rows(begin), output[l],
                                 memory[l], grad + offset[l], l > 0 ? output[l - 1] : nullptr, work);
    }
  }
  return log_likelihood;
}

static bool serves_images(const NetworkSpec&) {
  return true;
}

static const NetworkKernels network_kernels = {Precision::kHighest, kTile, kTilesInSum,   serves_images,
                                               chunk_bytes,         pack,  scratch_bytes, particle};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
