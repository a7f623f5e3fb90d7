// Dense networks that are small enough for one block to hold all of a particle: its weights, their gradient, and the
// activations of a tile of samples, in shared memory.
//
// A block takes one particle through one slice of the batch, tile by tile: the rows of x come in by asynchronous copies
// while the tile before is worked on; products are those of cuda/product.h; the loss turns outputs into their gradients
// in place, and backwards every layer's slopes become its gradients. Sums over samples stay in shared memory until the
// slice is over. A trajectory of leapfrog steps is one launch, since no particle needs to know of another: weights and
// gradient stay where they are, and momentum, which nobody else reads, goes through the second-level cache.
//
// Memory traffic: x once for each particle, from the second-level cache for all but the first; weights and gradient
// once for each launch; momentum, prior precision and scale once for each step.
//
// In shared memory, in float32, with rows of whole 16s and 4 more (see cuda/product.h): of each layer weights and
// gradient [outputs, inputs + 1], whose last column is the bias' in the gradient and zero in the weights; biases;
// activations and slopes [tile, outputs + 1], with a one in the last column; and two tiles of x likewise. What is
// beyond these is zero, and stays zero.
#pragma once

#include "cuda/leapfrog.h"
#include "cuda/ops.h"
#include "cuda/product.h"
#include "cuda/rows.h"

namespace fastsmc::cuda {

constexpr int kMostLayers = 8;
constexpr int kMostTile = 64;  // samples

FASTSMC_HD constexpr int whole(int size, int unit) {
  return (size + unit - 1) / unit * unit;
}
FASTSMC_HD constexpr int stride_of(int width) {
  return whole(width + 1, 16) + 4;
}

// A layer: its place in a particle, and those in shared memory, in floats; of the last, `values` and `deltas` are one.
struct DenseLayer {
  int inputs, outputs;
  Activation activation;
  int64_t begin;
  int weights, gradient, biases, values, deltas;

  FASTSMC_HD int64_t end() const { return begin + static_cast<int64_t>(outputs) * (inputs + 1); }
  FASTSMC_HD int rows() const { return whole(outputs, 16); }
  FASTSMC_HD int stride() const { return stride_of(inputs); }
  FASTSMC_HD int out_stride() const { return stride_of(outputs); }
};

struct DenseNetwork {
  int layers, tile;
  DenseLayer layer[kMostLayers];
  int x;  // in shared memory
  int floats;
  int64_t dim;

  FASTSMC_HD const DenseLayer& last() const { return layer[layers - 1]; }
};

// One leapfrog step.
struct Step {
  float kick, drift;
  bool refresh;
};

template <class Operands>
struct Evaluate {
  DenseNetwork network;
  Batch batch;  // rows of x one after the other
  Likelihood likelihood;
  float noise;
  double constant;         // of a sample's log-likelihood
  int64_t slice, slices;   // samples of a block, and blocks of a particle
  int64_t before;          // slices of the batch before theirs
  const float* particles;  // [P, dim]
  double* totals;          // [slices, P] or null
  float* gradients;        // [slices, P, dim] or null
  float* outputs;          // [P, samples, outputs] or null
  int64_t* status;         // where bad labels are reported
  Path path;               // no steps, no trajectory
  Plan plan;               // its inner steps

  static constexpr int kThreads = 256;
  size_t shared_bytes() const { return kScratch + shared_size<float>(network.floats); }

  FASTSMC_KERNEL bool goes_back() const { return gradients != nullptr || path.steps > 0; }

  template <class Block>
  FASTSMC_KERNEL void operator()(Block& block) const {
    void* const scratch = take_scratch(block);
    const Here here{block.template shared<float>(network.floats), scratch, block.index() / slices};
    block.each([&](int thread) {
      for (int i = thread; i < network.floats; i += kThreads) here.memory[i] = 0;
    });
    block.sync();
    write_ones(block, here);
    load(block, here);
    block.sync();
    if (path.steps > 0)
      follow(block, here);
    else
      evaluate(block, here, block.index() % slices);
  }

 private:
  // The block's shared memory, and the particle that it has there.
  struct Here {
    float* memory;
    void* scratch;
    int64_t particle;
  };

  template <class Block>
  FASTSMC_KERNEL void evaluate(Block& block, const Here& here, int64_t part) const {
    const int64_t row = part * (block.grid() / slices) + here.particle;
    const double total = go_through(block, here, before + part);
    if (totals != nullptr) store_total(block, total, totals + row);
    if (gradients != nullptr) store_gradient(block, here, gradients + row * network.dim);
  }

  template <class Block>
  FASTSMC_KERNEL void follow(Block& block, const Here& here) const {
    const int64_t row = here.particle * network.dim;
    const float half = .5f * plan.kick;
    step(block, here, {half, plan.drift, path.refresh}, path.start);
    for (int64_t k = 1; k < path.steps; ++k) {
      go_through(block, here, 0);
      step(block, here, {plan.kick, plan.drift, false}, path.end);
    }
    store_total(block, go_through(block, here, 0), totals + here.particle);
    store_gradient(block, here, path.gradient + row);
    step(block, here, {half, 0.f, false}, path.end);
    for_weights(block, [&](int64_t i, Place at) { path.particles[row + i] = here.memory[at.weight]; });
  }

  template <class Block>
  FASTSMC_KERNEL void store_total(Block& block, double total, double* to) const {
    block.each([&](int thread) {
      if (thread == 0) *to = total;
    });
  }

  // Where a weight or bias and its gradient are in shared memory.
  struct Place {
    int weight, gradient;
  };
  FASTSMC_KERNEL Place place(int64_t i) const {
    int l = 0;
    while (i >= network.layer[l].end()) ++l;
    const DenseLayer& layer = network.layer[l];
    const int at = static_cast<int>(i - layer.begin), weights = layer.outputs * layer.inputs;
    const bool bias = at >= weights;
    const int row = bias ? at - weights : at / layer.inputs, column = bias ? layer.inputs : at % layer.inputs;
    const int cell = row * layer.stride() + column;
    return {bias ? layer.biases + row : layer.weights + cell, layer.gradient + cell};
  }

  // work(number in the particle, place) for every weight and bias, always by the same thread.
  template <class Block, class Work>
  FASTSMC_KERNEL void for_weights(Block& block, const Work& work) const {
    block.each([&](int thread) {
      for (int64_t i = thread; i < network.dim; i += kThreads) work(i, place(i));
    });
  }

  // The last columns of what layers read, for the gradients of biases.
  template <class Block>
  FASTSMC_KERNEL void write_ones(Block& block, const Here& here) const {
    for (int l = 0; l < network.layers; ++l) {
      const int inputs = network.layer[l].inputs, stride = network.layer[l].stride();
      const int rows = l == 0 ? 2 * network.tile : network.tile;
      float* const values = here.memory + (l == 0 ? network.x : network.layer[l - 1].values);
      block.each([&](int thread) {
        for (int row = thread; row < rows; row += kThreads) values[row * stride + inputs] = 1;
      });
    }
  }

  template <class Block>
  FASTSMC_KERNEL void load(Block& block, const Here& here) const {
    const int64_t row = here.particle * network.dim;
    for_weights(block, [&](int64_t i, Place at) {
      here.memory[at.weight] = particles[row + i];
      if (path.steps > 0) here.memory[at.gradient] = path.gradient[row + i];
    });
  }

  template <class Block>
  FASTSMC_KERNEL void store_gradient(Block& block, const Here& here, float* to) const {
    for_weights(block, [&](int64_t i, Place at) { to[i] = here.memory[at.gradient]; });
  }

  // Moves the weights, and clears the gradient; energies are summed as cuda/leapfrog.h does.
  template <class Block>
  FASTSMC_KERNEL void step(Block& block, const Here& here, const Step& step, double* energies) const {
    constexpr int64_t kRun = Leapfrog::kRun;
    static_assert(Leapfrog::kThreads == kThreads, "energies have the bits of single steps");
    double sums[3] = {};
    for (int64_t run = 0; run < network.dim; run += kRun) {
      typename Block::template Private<Items<double, 3>> energy;
      block.each([&](int thread) {
        energy[thread] = {};
        for (int64_t i = run + thread; i < run + kRun && i < network.dim; i += kThreads) {
          const Place at = place(i);
          float &theta = here.memory[at.weight], &momentum = path.momentum[here.particle * network.dim + i];
          const float precision = path.precision[i], scale = path.scale == nullptr ? 1.f : path.scale[i];
          float v = momentum;
          if (step.refresh)
            v = update::refreshed<Scalar>(v, normal(path.refreshment.names, here.particle, i), plan.deviation,
                                          plan.persistence);
          energy[thread][0] += static_cast<double>(v) * v;
          v = update::kicked<Scalar>(v, theta, here.memory[at.gradient], precision, scale, plan.likelihood_scale,
                                     step.kick);
          energy[thread][1] += static_cast<double>(v) * v;
          theta = update::drifted<Scalar>(theta, v, scale, step.drift);
          energy[thread][2] += precision * (static_cast<double>(theta) * theta);
          momentum = v;
          here.memory[at.gradient] = 0;
        }
      });
      FASTSMC_UNROLL
      for (int e = 0; e < 3; ++e) {
        typename Block::template Private<double> part;
        block.each([&](int thread) { part[thread] = energy[thread][e]; });
        sums[e] += .5 * reduce(block, part, 0., Sum{}, here.scratch);
      }
    }
    block.each([&](int thread) {
      if (thread == 0)
        for (int e = 0; e < 3; ++e) energies[here.particle * 3 + e] = sums[e];
    });
    block.sync();
  }

  // Log-likelihood of a slice; its gradient is added to the one in shared memory, outputs are written where
  // wanted.
  template <class Block>
  FASTSMC_KERNEL double go_through(Block& block, const Here& here, int64_t part) const {
    typename Block::template Private<double> total;
    block.each([&](int thread) { total[thread] = 0; });
    const int64_t begin = part * slice, end = begin + slice < batch.samples ? begin + slice : batch.samples;
    const int tile_floats = network.tile * network.layer[0].stride();
    fetch(block, here.memory + network.x, begin, end);
    int turn = 0;
    for (int64_t first = begin; first < end; first += network.tile, turn ^= 1) {
      fetch(block, here.memory + network.x + (turn ^ 1) * tile_floats, first + network.tile, end);
      block.template copy_wait<1>();
      block.sync();
      const float* const x = here.memory + network.x + turn * tile_floats;
      forward(block, here, x);
      if (outputs != nullptr) store_outputs(block, here, first, end);
      if (totals != nullptr) {
        lose(block, here, first, end, total);
        block.sync();
        if (goes_back()) backward(block, here, x);
      }
      block.sync();
    }
    block.template copy_wait<0>();
    return reduce(block, total, 0., Sum{}, here.scratch);
  }

  // Rows of x from `first` on, as far as there are any before `end`; the last again for the others, so that nothing
  // becomes of them, such as an infinite slope, that becomes of no sample.
  template <class Block>
  FASTSMC_KERNEL void fetch(Block& block, float* to, int64_t first, int64_t end) const {
    const int inputs = network.layer[0].inputs, stride = network.layer[0].stride();
    const bool wide = inputs % 4 == 0 && reinterpret_cast<uintptr_t>(batch.x) % 16 == 0;
    const int unit = wide ? 4 : 1, units = inputs / unit;
    if (first < end)
      block.each([&](int thread) {
        for (int i = thread; i < network.tile * units; i += kThreads) {
          const int row = i / units, column = i % units * unit;
          const int64_t sample = first + row < end ? first + row : end - 1;
          block.copy_async(to + row * stride + column, batch.x + sample * inputs + column, unit * 4);
        }
      });
    block.copy_commit();
  }

  template <class Block>
  FASTSMC_KERNEL void forward(Block& block, const Here& here, const float* x) const {
    for (int l = 0; l < network.layers; ++l) {
      const DenseLayer& layer = network.layer[l];
      const bool hidden = l < network.layers - 1, back = goes_back();
      const Matrix from{l == 0 ? x : here.memory + network.layer[l - 1].values, layer.stride(), 1};
      const Matrix weights{here.memory + layer.weights, 1, layer.stride()};
      const auto done = [&](int sample, int unit, float sum) {
        if (unit >= layer.outputs) return;
        const int at = sample * layer.out_stride() + unit;
        float z = sum + here.memory[layer.biases + unit], slope = 0;
        if (hidden)
          activation::dispatch(layer.activation,
                               [&](auto kind) { z = decltype(kind)::template apply<Scalar>(z, slope); });
        here.memory[layer.values + at] = z;
        if (hidden && back) here.memory[layer.deltas + at] = slope;
      };
      product<Operands>(block, from, weights, network.tile, whole(layer.outputs, 8), whole(layer.inputs, 16), done);
      block.sync();
    }
  }

  template <class Block>
  FASTSMC_KERNEL void backward(Block& block, const Here& here, const float* x) const {
    for (int l = network.layers - 1; l >= 0; --l) {
      const DenseLayer& layer = network.layer[l];
      const float* const deltas = here.memory + layer.deltas;
      const Matrix from{l == 0 ? x : here.memory + network.layer[l - 1].values, layer.stride(), 1};
      const auto add = [&](int unit, int input, float sum) {
        if (unit < layer.outputs && input <= layer.inputs)
          here.memory[layer.gradient + unit * layer.stride() + input] += sum;
      };
      product<Operands>(block, {deltas, 1, layer.out_stride()}, from, layer.rows(), whole(layer.inputs + 1, 8),
                        network.tile, add);
      if (l > 0) {
        float* const slopes = here.memory + network.layer[l - 1].deltas;
        const auto multiply = [&](int sample, int input, float sum) {
          if (input < layer.inputs) slopes[sample * layer.stride() + input] *= sum;
        };
        product<Operands>(block, {deltas, layer.out_stride(), 1}, {here.memory + layer.weights, layer.stride(), 1},
                          network.tile, whole(layer.inputs, 8), layer.rows(), multiply);
      }
      block.sync();
    }
  }

  // The outputs of a sample, which become their gradients.
  struct Logits {
    float* at;
    FASTSMC_KERNEL float operator()(int64_t c) const { return at[c]; }
    FASTSMC_KERNEL void set(int64_t c, float value) const { at[c] = value; }
  };

  template <class Block, class Totals>
  FASTSMC_KERNEL void lose(Block& block, const Here& here, int64_t first, int64_t end, Totals& total) const {
    const DenseLayer& layer = network.last();
    block.each([&](int thread) {
      for (int row = thread; row < network.tile; row += kThreads) {
        const Logits z{here.memory + layer.values + row * layer.out_stride()};
        const int64_t sample = first + row;
        if (sample >= end) {
          for (int c = 0; c < layer.outputs; ++c) z.set(c, 0);
          continue;
        }
        const float weight = batch.weights == nullptr ? 1.f : batch.weights[sample];
        total[thread] += static_cast<double>(loss_of(z, sample, weight)) + weight * constant;
      }
    });
  }

  FASTSMC_KERNEL float loss_of(const Logits& z, int64_t sample, float weight) const {
    const int outputs_of = network.last().outputs;
    if (likelihood == Likelihood::kCategorical) {
      int64_t label = batch.labels[sample];
      if (label < 0 || label >= outputs_of) {
        report(status, Fault::kLabel, sample);
        label = 0;
      }
      return loss::categorical<Scalar>(z, outputs_of, static_cast<int32_t>(label), weight);
    }
    const float* const row = batch.targets + sample * outputs_of;
    const auto target = [=](int64_t c) { return row[c]; };
    if (likelihood == Likelihood::kBernoulli) return loss::bernoulli<Scalar>(z, outputs_of, target, weight);
    if (likelihood == Likelihood::kPoisson) return loss::poisson<Scalar>(z, outputs_of, target, weight);
    return loss::gaussian<Scalar>(z, outputs_of, target, noise, weight);
  }

  template <class Block>
  FASTSMC_KERNEL void store_outputs(Block& block, const Here& here, int64_t first, int64_t end) const {
    const DenseLayer& layer = network.last();
    const int64_t rows = end - first < network.tile ? end - first : network.tile;
    float* const to = outputs + (here.particle * batch.samples + first) * layer.outputs;
    block.each([&](int thread) {
      for (int64_t i = thread; i < rows * layer.outputs; i += kThreads)
        to[i] = here.memory[layer.values + i / layer.outputs * layer.out_stride() + i % layer.outputs];
    });
  }
};

}  // namespace fastsmc::cuda
