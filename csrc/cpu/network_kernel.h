// Log-likelihood and gradient of one particle's network over a packed chunk of the batch, in float32.
//
// A stretch of samples (of images: as many as fit L2) goes forward through all layers and back, so that the
// scratch of a particle is the stretch times the sum of the layers' outputs, whatever the batch. Gradients are summed
// in float32 within a stretch and over stretches in order, the log-likelihood over panels in float64.
//
// A chunk holds, for S = its samples rounded up to lanes (kLanes), the last one again for those that are missing, so
// that nothing of them is infinite where nothing of a sample is; their delta is zero:
//   x by panels  [panel][inputs][w]                        forward
//   targets      [panel][target rows][w]                   int32 labels or float values, and weights: see target_rows
//   x by rows    [tile][panel of inputs][samples][w]       weight gradient of a dense first layer
//   starts       [tile][SparseTile::num_starts]            of a dense first layer
// A tile of which much is zero has its entries in the place of both x's: see SparseTile.
#pragma once

#include "cpu/convolution_kernel.h"
#include "cpu/dense_kernel.h"
#include "cpu/loss_kernel.h"
#include "cpu/sparse_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int64_t kTilesInSum = 8;
constexpr int64_t kStretch = 128;
constexpr int64_t kStretchBytes = 1 << 20;  // of the activations of a network with convolutions, which stay in L2
static_assert(kStretch % kTile == 0, "stretches are whole tiles");

// What a kind of layer is to the passes over a network: see Dense.
struct LayerKernels {
  int64_t (*memory)(const Layer&, int64_t samples);
  int64_t (*work)(const Layer&, int64_t samples, bool with_below);
  void (*forward)(const Layer&, const float* params, const float* h, int columns, float* z, float* memory, float* work);
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
static bool all_dense(const NetworkSpec& spec) {
  for (int l = 0; l < spec.layers; ++l)
    if (!spec.layer[l].dense()) return false;
  return true;
}

// Samples that go forward and back together: kStretch, or as many as fit kStretchBytes where there are images.
static int64_t stretch_of(const NetworkSpec& spec) {
  if (all_dense(spec)) return kStretch;
  int64_t bytes = 0, samples = kStretch;
  for (int l = 0; l < spec.layers; ++l)
    bytes += kept_floats(spec.layer[l], kStretch) * static_cast<int64_t>(sizeof(float));
  for (; samples > kPanel && bytes > kStretchBytes; samples /= 2) bytes /= 2;
  return samples;
}

// Where the parts of a chunk lie, in words of 4 bytes. A convolution reads a pixel for many of its outputs, and needs
// neither rows nor entries.
struct FloatChunk {
  int64_t inputs, samples;  // samples rounded up to lanes
  bool dense, with_rows;
  UnitPanels units;
  int64_t num_starts, targets_at, rows_at, starts_at, words;
  float* data;

  FloatChunk(const NetworkSpec& spec, const Chunk& chunk)
      : inputs(spec.inputs()),
        samples(round_up_lanes(chunk.samples)),
        dense(spec.layer[0].dense()),
        with_rows(dense && chunk.for_gradient),
        units(spec.layer[0].out_channels),
        num_starts(dense ? SparseTile{inputs, kTile, units.width, nullptr, nullptr, nullptr}.num_starts() : 0),
        data(reinterpret_cast<float*>(chunk.data)) {
    targets_at = samples * inputs;
    rows_at = targets_at + samples * target_rows(spec, chunk);
    starts_at = rows_at + (with_rows ? samples * round_up_lanes(inputs) : 0);
    words = starts_at + (samples + kTile - 1) / kTile * num_starts;
  }

  float* x_panels(int64_t first) const { return data + first * inputs; }
  float* targets(int64_t first_row) const { return data + targets_at + first_row; }
  Rows rows(int64_t begin, int64_t count) const { return with_rows ? Rows{rows_of(begin), count, inputs} : Rows{}; }
  float* row_panel(int64_t sample, int64_t panel) const {
    return data + rows_at + Rows::at(samples, inputs, sample, panel);
  }
  SparseTile tile(int64_t begin) const {
    return {inputs,
            Rows::depth(samples, begin),
            units.width,
            starts(begin),
            reinterpret_cast<Entry*>(x_panels(begin)),
            with_rows ? reinterpret_cast<Entry*>(rows_of(begin)) : nullptr};
  }
  int64_t tiles_in_pass() const {
    const int64_t tiles = (samples + kTile - 1) / kTile;
    return tiles < kTilesInSum ? tiles : kTilesInSum;
  }
  bool listed(int64_t begin) const { return dense && starts(begin)[0] == 0; }
  // Samples from `begin` on, at most so many, whose tiles are listed if that of the first is.
  int64_t alike(int64_t begin, int64_t most) const {
    for (int64_t s = kTile; s < most; s += kTile)
      if (listed(begin + s) != listed(begin)) return s;
    return most;
  }

 private:
  int32_t* starts(int64_t begin) const {
    return reinterpret_cast<int32_t*>(data + starts_at) + begin / kTile * num_starts;
  }
  float* rows_of(int64_t begin) const { return data + rows_at + begin * round_up_lanes(inputs); }
};

static size_t chunk_bytes(const NetworkSpec& spec, const Chunk& chunk) {
  return static_cast<size_t>(FloatChunk(spec, chunk).words) * sizeof(float);
}

static void pack_x(Strided x, const FloatChunk& to, int64_t panel) {
  const int64_t inputs = to.inputs, first = panel * kPanel, tile = first / kTile * kTile;
  const int columns = Panels{to.samples}.columns(panel);
  for (int v = 0; v < columns; ++v)
    for (int64_t i = 0; i < inputs; i += kLanes) {
      const int64_t sample = first + v * kLanes, count = inputs - i < kLanes ? inputs - i : kLanes;
      const int64_t j = i / kPanel, row = Rows::width(inputs, j);
      vfloat square[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        square[k] = load_row(x.at(sample + k < x.rows ? sample + k : x.rows - 1, i), x.column_stride, count);
        if (to.with_rows) store(to.row_panel(tile, j) + (sample + k - tile) * row + i % kPanel, square[k]);
      }
      transpose(square);
      float* panels = to.x_panels(first) + i * columns * kLanes + v * kLanes;
      for (int64_t k = 0; k < count; ++k) store(panels + k * columns * kLanes, square[k]);
    }
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
  const Strided x{batch.x + chunk.begin * batch.row_stride, chunk.samples, to.inputs, batch.row_stride,
                  batch.column_stride};
  const int64_t begin = tile * kTile;
  if (to.dense) list_entries(x.from(begin), to.tiles_in_pass(), to.tile(begin));
  const Panels panels{to.samples};
  for (int64_t panel = begin / kPanel; panel < panels.count() && panel * kPanel < begin + kTile; ++panel) {
    if (!to.listed(begin)) pack_x(x, to, panel);
    if (!chunk.has_targets) continue;
    const int64_t first = panel * kPanel, row = panels.columns(panel) * kLanes;
    pack_targets(spec, batch, chunk, first, row, to.targets(first * target_rows(spec, chunk)));
  }
}

static size_t scratch_bytes(const NetworkSpec& spec) {
  const int64_t stretch = stretch_of(spec);
  int64_t floats = 0, work = 0;
  for (int l = 0; l < spec.layers; ++l) {
    floats += kept_floats(spec.layer[l], stretch);
    const int64_t needed = kernels_of(spec.layer[l]).work(spec.layer[l], stretch, l > 0);
    if (needed > work) work = needed;
  }
  if (spec.layer[0].dense()) floats += SparseLayer::memory(spec.layer[0]);
  return static_cast<size_t>(floats + work) * sizeof(float);
}

static void write_outputs(const float* z, int64_t width, int columns, int64_t valid, float* to) {
  const int64_t row = columns * kLanes, count = valid < row ? valid : row;
  for (int64_t sample = 0; sample < count; ++sample)
    for (int64_t c = 0; c < width; ++c) to[sample * width + c] = z[c * row + sample];
}

// One particle over some tiles at a time. `outputs` may be null, and memory is kept for a gradient where one is wanted.
class FloatPass {
 public:
  FloatPass(const NetworkSpec& spec, const Chunk& chunk, const float* params, float* outputs, char* scratch)
      : spec_(spec),
        chunk_(chunk),
        params_(params),
        outputs_(outputs),
        length_(stretch_of(spec)),
        last_(spec.layers - 1),
        packed_(spec, chunk),
        sparse_(packed_.inputs, packed_.units, params),
        work_(reinterpret_cast<float*>(scratch)) {
    int64_t at = 0;
    for (int l = 0; l <= last_; ++l) {
      const Layer& layer = spec.layer[l];
      offset_[l] = at;
      at += layer.num_params();
      output_[l] = work_;
      memory_[l] = output_[l] + layer.outputs() * length_;
      work_ = output_[l] + kept_floats(layer, length_);
    }
  }

  // The log-likelihood of a group of tiles, whose gradient is added to grad.total, or set, by the time of `finish`.
  double add(Tiles tiles, Gradient grad) {
    const int64_t begin = tiles.begin * kTile, tiles_end = tiles.end * kTile;
    const int64_t end = tiles_end < packed_.samples ? tiles_end : packed_.samples, dim = spec_.num_params();
    int64_t listed = 0;
    for (int64_t s = begin; s < end; s += kTile) listed += packed_.listed(s);
    if (listed > 0 && !sparse_.loaded()) work_ = sparse_.load(work_);
    const bool kept = listed == tiles.end - tiles.begin;
    // what of the gradient is kept by the sparse layer comes first in a particle
    const int64_t beside = kept ? spec_.inputs() * spec_.layer[0].out_channels : 0;
    float* sum = grad.total == nullptr || grad.fresh ? grad.total : grad.sum;
    if (sum != nullptr) memset(sum + beside, 0, static_cast<size_t>(dim - beside) * sizeof(float));

    double log_likelihood = 0;
    for (int64_t s = begin, samples = 0; s < end; s += samples) {
      samples = packed_.alike(s, end - s < length_ ? end - s : length_);
      log_likelihood += forward(s, Panels{samples}, sum != nullptr);
      if (sum != nullptr) backward(s, Panels{samples}, sum);
    }
    if (sum == nullptr) return log_likelihood;
    if (kept) {
      sparse_.keep_group(grad.total, grad.fresh);
    } else {
      sparse_.give_group(sum);
      sparse_.settle(grad.total);  // to which `sum` is added
    }
    if (sum != grad.total) add_to(grad.total + beside, sum + beside, dim - beside);
    return log_likelihood;
  }

  // What is left to do after the last group.
  void finish(Gradient grad) {
    if (grad.total != nullptr) sparse_.settle(grad.total);
  }

 private:
  double forward(int64_t begin, Panels stretch, bool with_grad) {
    const bool listed = packed_.listed(begin);
    for (int64_t s = 0; s < stretch.samples && listed; s += kTile)
      sparse_.forward(packed_.tile(begin + s), chunk_.samples - begin - s,
                      output_[0] + s * spec_.layer[0].out_channels);
    double log_likelihood = 0;
    for (int64_t p = 0; p < stretch.count(); ++p) {
      const int64_t first = p * kPanel, valid = chunk_.samples - begin - first, width = spec_.outputs();
      const int columns = stretch.columns(p);
      const float* h = packed_.x_panels(begin + first);
      for (int l = 0; l <= last_; ++l) {
        const Layer& layer = spec_.layer[l];
        float* z = output_[l] + first * layer.outputs();
        float* kept = with_grad ? memory_[l] + kernels_of(layer).memory(layer, first) : nullptr;
        if (l == 0 && listed)
          Dense::activate(layer, columns, z, kept);
        else
          kernels_of(layer).forward(layer, params_ + offset_[l], h, columns, z, kept, work_);
        h = z;
      }
      float* z = output_[last_] + first * width;
      if (outputs_ != nullptr)
        write_outputs(z, width, columns, valid, outputs_ + (begin + first) * width);
      else
        log_likelihood += panel_loss(spec_, z, columns, packed_.targets((begin + first) * target_rows(spec_, chunk_)),
                                     chunk_.has_weights, valid);
    }
    return log_likelihood;
  }

  void backward(int64_t begin, Panels stretch, float* grad) {
    for (int l = last_; l > 0; --l)
      kernels_of(spec_.layer[l])
          .backward(spec_.layer[l], params_ + offset_[l], stretch, output_[l - 1], Rows{}, output_[l], memory_[l],
                    grad + offset_[l], output_[l - 1], work_);
    const Layer& first = spec_.layer[0];
    if (!packed_.listed(begin))
      return kernels_of(first).backward(first, params_, stretch, packed_.x_panels(begin),
                                        packed_.rows(begin, stretch.samples), output_[0], memory_[0], grad, nullptr,
                                        work_);
    const bool finite = Dense::deactivate(first, stretch, output_[0], memory_[0], grad);
    for (int64_t s = 0; s < stretch.samples; s += kTile)
      sparse_.backward(packed_.tile(begin + s), output_[0] + s * first.out_channels, finite);
  }

  const NetworkSpec& spec_;
  const Chunk& chunk_;
  const float* params_;
  float* outputs_;
  int64_t length_;
  int last_;
  FloatChunk packed_;
  SparseLayer sparse_;
  float *output_[kMaxLayers], *memory_[kMaxLayers], *work_;
  int64_t offset_[kMaxLayers];
};

static double particle(const NetworkSpec& spec, const Chunk& chunk, Groups groups, const float* params, Gradient grad,
                       float* outputs, char* scratch) {
  FloatPass pass(spec, chunk, params, outputs, scratch);
  double log_likelihood = 0;
  for (int64_t g = groups.begin; g < groups.end; ++g, grad.fresh = false) log_likelihood += pass.add(groups[g], grad);
  pass.finish(grad);
  return log_likelihood;
}

static bool serves_all(const NetworkSpec&, const Batch*) {
  return true;
}

static const NetworkKernels network_kernels = {
    Precision::kHighest, kTile, kTilesInSum, serves_all, chunk_bytes, pack, scratch_bytes, particle, multiply_adds,
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
