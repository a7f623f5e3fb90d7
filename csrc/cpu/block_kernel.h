// Log-likelihood and gradient of one particle's dense network by products of blocks (block_pack.h): operands in
// bfloat16, or as sums of two bfloat16 numbers; sums, biases, activations and losses in float32 with samples as lanes,
// by the functions of the float32 kernels.
//
//   forward          z   = b + W h            left W       (packed per call)    right h   (x: packed once per chunk)
//   input gradient   dh  = W^T dz             left W^T     (packed per call)    right dz
//   weight gradient  dW += dz h^T             left dz                           right h^T (x: packed once per chunk)
//
// A panel of 32 samples goes forward through all layers and back to its dz; when all panels of a tile have, the weight
// gradients are summed over the tile. Of a panel float32 z and slopes are kept, of a tile only dz and h as operands, so
// scratch is W, and kTile times the sum of the hidden widths, whatever the batch. Beside what the products read W is
// read once per panel (packed), dW read and written once per tile, x streamed once per pass.
//
// Order of sums: blocks of 32 terms ascending; within a block as the level's multiplier says. Weight gradients start
// from zero in each tile of samples and are then added to grad, but for whole blocks with one term, which are summed on
// top of it. Nothing depends on the number of threads.
#pragma once

#include "cpu/block_pack.h"
#include "cpu/network_kernel.h"
#include FASTSMC_MULTIPLIER

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int64_t kDepthSteps = 12;  // blocks in one sum of one term, of which L1 holds one operand

// C [rows][32 samples] = left [row blocks][blocks of depth] right [blocks of depth].
template <int Terms>
static void multiply_panel(Multiplier& multiplier, const uint32_t* left, const uint32_t* right, int64_t depth, float* c,
                           int64_t rows) {
  constexpr int64_t kWords = Terms * kBlockWords;
  const int64_t steps = blocks_of(depth), parts = Terms == 1 ? (steps + kDepthSteps - 1) / kDepthSteps : 1;
  const int64_t part = (steps + parts - 1) / parts;
  for (int64_t k = 0; k < steps; k += part)
    for (int64_t r = 0; r < rows; r += kEdge) {
      const int64_t left_over = depth - k * kEdge, terms = part * kEdge < left_over ? part * kEdge : left_over;
      const uint32_t* rows_of_left = left + (r / kEdge * steps + k) * kWords;
      const int64_t height = rows - r < kEdge ? rows - r : kEdge;
      multiplier.multiply<Terms>({terms, height, kEdge, rows_of_left, right + k * kWords, c + r * kEdge, kEdge, k > 0});
    }
}

static inline void add_bias(const float* bias, float* z, int64_t width) {
  for (int64_t r = 0; r < width; ++r, z += kEdge)
    for (int64_t i = 0; i < kEdge; i += kLanes) store(z + i, load<vfloat>(z + i) + bias[r]);
}

// grad [out, in] += dz h^T, or = where `set`; dz [out blocks][left_steps], h^T [in blocks][right_steps], summed over
// `samples`.
template <int Terms>
static void add_weight_gradient(Multiplier& multiplier, const Layer& layer, int64_t samples, const uint32_t* left,
                                int64_t left_steps, const uint32_t* right, int64_t right_steps, bool set, float* grad) {
  constexpr int64_t kWords = Terms * kBlockWords;
  const int64_t inputs = layer.inputs(), outputs = layer.out_channels;
  alignas(64) float sum[kEdge * kEdge];
  for (int64_t i = 0; i < inputs; i += kEdge, right += right_steps * kWords)
    for (int64_t r = 0; r < outputs; r += kEdge) {
      const int64_t rows = outputs - r < kEdge ? outputs - r : kEdge;
      const int64_t columns = inputs - i < kEdge ? inputs - i : kEdge;
      float* to = grad + r * inputs + i;
      const uint32_t* dz = left + r / kEdge * left_steps * kWords;
      if (Terms == 1 && rows % Multiplier::kRowStep == 0 && columns % 16 == 0) {
        multiplier.multiply<Terms>({samples, rows, columns, dz, right, to, inputs, !set});
        continue;
      }
      multiplier.multiply<Terms>({samples, rows, columns, dz, right, sum, kEdge, false});
      for (int64_t k = 0; k < rows; ++k)
        if (set)
          memcpy(to + k * inputs, sum + k * kEdge, static_cast<size_t>(columns) * sizeof(float));
        else
          add_to(to + k * inputs, sum + k * kEdge, columns);
    }
}

template <int Terms>
class BlockNetwork {
 public:
  static constexpr int64_t kTileSamples = 384, kTileSteps = kTileSamples / kEdge, kTilesInSum = 4;

  static size_t chunk_bytes(const NetworkSpec& spec, const Chunk& chunk) { return Packed(spec, chunk).bytes; }

  static void pack(const NetworkSpec& spec, const Batch& batch, const Chunk& chunk, int64_t tile) {
    const Packed to(spec, chunk);
    const int64_t inputs = spec.inputs(), blocks = blocks_of(inputs);
    for (int64_t step = tile * kTileSteps; step < to.steps && step < (tile + 1) * kTileSteps; ++step) {
      const int64_t first = step * kEdge;
      const float* x = batch.x + (chunk.begin + first) * batch.row_stride;
      for (int64_t j = 0; j < blocks; ++j) {
        const FloatBlock block(x + j * kEdge * batch.column_stride, batch.row_stride, batch.column_stride,
                               chunk.samples - first, inputs - j * kEdge, Behind::kLastRow);
        pack_block<Terms, Side::kRight, Sum::kAcross>(block, to.x(step * blocks + j));
        if (chunk.for_gradient) pack_block<Terms, Side::kRight, Sum::kDown>(block, to.x_gradient(j * to.steps + step));
      }
      if (chunk.has_targets)
        pack_targets(spec, batch, chunk, first, kEdge, to.targets(first * target_rows(spec, chunk)));
    }
  }

  static size_t scratch_bytes(const NetworkSpec& spec) { return Scratch(spec).bytes; }

  static double particle(const NetworkSpec& spec, const Chunk& chunk, Groups groups, const float* params, Gradient grad,
                         float* outputs, char* memory) {
    const int64_t dim = spec.num_params();
    Pass pass{spec, chunk, params, grad.total, outputs, memory, Packed(spec, chunk), Scratch(spec), spec.layers - 1};
    pass.pack_weights();
    Multiplier multiplier;
    double log_likelihood = 0;
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      const bool set = grad.total == nullptr || (grad.fresh && g == groups.begin);
      if (!set) pass.grad = grad.sum;
      double sum = 0;
      for (int64_t tile = groups[g].begin; tile < groups[g].end; ++tile)
        sum += pass.tile(multiplier, tile, tile == groups[g].begin);
      log_likelihood += sum;
      if (!set) add_to(grad.total, grad.sum, dim);
    }
    return log_likelihood;
  }

 private:
  static constexpr int64_t kWords = Terms * kBlockWords, kBytes = 4 * kWords;

  // A chunk: x as right operand of the forward product [step][input block], as that of the weight gradient
  // [input block][step], targets [step][target rows][32].
  struct Packed {
    int64_t steps;
    size_t bytes, gradient_at, targets_at;
    char* data;

    Packed(const NetworkSpec& spec, const Chunk& chunk) : steps(blocks_of(chunk.samples)), data(chunk.data) {
      const auto x_bytes = static_cast<size_t>(steps * blocks_of(spec.inputs()) * kBytes);
      gradient_at = x_bytes;
      targets_at = gradient_at + (chunk.for_gradient ? x_bytes : 0);
      bytes = targets_at + static_cast<size_t>(steps * target_rows(spec, chunk) * kEdge * 4);
    }
    uint32_t* x(int64_t block) const { return reinterpret_cast<uint32_t*>(data) + block * kWords; }
    uint32_t* x_gradient(int64_t block) const {
      return reinterpret_cast<uint32_t*>(data + gradient_at) + block * kWords;
    }
    float* targets(int64_t at) const { return reinterpret_cast<float*>(data + targets_at) + at; }
  };

  // Where everything lies in the scratch memory, in bytes.
  struct Scratch {
    struct OfLayer {
      int64_t params;         // of the layer, in floats
      size_t weight;          // W, left [out blocks][in blocks]
      size_t weight_columns;  // W^T, left [in blocks][out blocks]; not for the first layer
      size_t slope;           // act'(z) of a panel, [out][32]
      size_t dz;              // of a tile, left [out blocks][kTileSteps]
      size_t dz_sums;         // of a tile, [out] vectors
      size_t h;  // h^T of the layer below of a tile, right [in blocks][kTileSteps]; not for the first layer
    } layer[kMaxLayers];
    size_t z, operand;  // of a panel: [width][32] floats; right [blocks]
    size_t bytes = 0;

    explicit Scratch(const NetworkSpec& spec) {
      int64_t params = 0, widest = 0;
      for (int l = 0; l < spec.layers; ++l) {
        const int64_t in = blocks_of(spec.layer[l].inputs()), out = blocks_of(spec.layer[l].out_channels);
        OfLayer& at = layer[l];
        at.params = params;
        params += spec.layer[l].num_params();
        at.weight = take(out * in * kBytes);
        at.weight_columns = take(l > 0 ? in * out * kBytes : 0);
        at.slope = take(out * kEdge * kEdge * 4);
        at.dz = take(out * kTileSteps * kBytes);
        at.dz_sums = take(out * kEdge * 64);
        at.h = take(l > 0 ? in * kTileSteps * kBytes : 0);
        if (out > widest) widest = out;
      }
      z = take(widest * kEdge * kEdge * 4);
      operand = take(widest * kBytes);
    }

   private:
    size_t take(int64_t count) {
      const size_t at = bytes;
      bytes += static_cast<size_t>(count);
      return at;
    }
  };

  struct Pass {
    const NetworkSpec& spec;
    const Chunk& chunk;
    const float* params;
    float *grad, *outputs;
    char* memory;
    Packed packed;
    Scratch at;
    int last;

    uint32_t* words(size_t where, int64_t block) const {
      return reinterpret_cast<uint32_t*>(memory + where) + block * kWords;
    }
    float* floats(size_t where) const { return reinterpret_cast<float*>(memory + where); }

    void pack_weights() const {
      for (int l = 0; l <= last; ++l) {
        const int64_t in = spec.layer[l].inputs(), out = spec.layer[l].out_channels;
        const float* weight = params + at.layer[l].params;
        const int64_t in_blocks = blocks_of(in), out_blocks = blocks_of(out);
        pack_rows<Terms>({weight, in, 1, out, in}, out, in, words(at.layer[l].weight, 0), in_blocks);
        if (l == 0 || grad == nullptr) continue;
        for (int64_t r = 0; r < out_blocks; ++r)
          for (int64_t j = 0; j < in_blocks; ++j)
            pack_block<Terms, Side::kLeft, Sum::kDown>(
                {weight + (r * in + j) * kEdge, in, 1, out - r * kEdge, in - j * kEdge},
                words(at.layer[l].weight_columns, j * out_blocks + r));
      }
    }

    // The gradient of the first tile of a sum sets it, those of the others are added.
    double tile(Multiplier& multiplier, int64_t number, bool first_of_sum) const {
      const int64_t begin = number * kTileSteps, left = chunk.samples - begin * kEdge;
      const int64_t samples = left < kTileSamples ? left : kTileSamples;
      for (int l = 0; l <= last; ++l)
        memset(floats(at.layer[l].dz_sums), 0, static_cast<size_t>(spec.layer[l].out_channels) * 64);
      double log_likelihood = 0;
      for (int64_t step = 0; step < blocks_of(samples); ++step) {
        forward(multiplier, begin + step, step);
        const int64_t first = (begin + step) * kEdge, valid = chunk.samples - first;
        if (outputs != nullptr) {
          write_outputs(floats(at.z), spec.outputs(), 2, valid, outputs + first * spec.outputs());
          continue;
        }
        log_likelihood += panel_loss(spec, floats(at.z), 2, packed.targets(first * target_rows(spec, chunk)),
                                     chunk.has_weights, valid);
        if (grad != nullptr) backward(multiplier, step);
      }
      if (grad != nullptr) add_gradients(multiplier, begin, samples, first_of_sum);
      return log_likelihood;
    }

    // The outputs of a panel come to lie at z.
    void forward(Multiplier& multiplier, int64_t step_of_chunk, int64_t step) const {
      const uint32_t* h = packed.x(step_of_chunk * blocks_of(spec.inputs()));
      float* z = floats(at.z);
      for (int l = 0; l <= last; ++l) {
        const Layer& layer = spec.layer[l];
        const int64_t out = layer.out_channels, out_blocks = blocks_of(out);
        multiply_panel<Terms>(multiplier, words(at.layer[l].weight, 0), h, layer.inputs(), z, out);
        add_bias(params + at.layer[l].params + layer.inputs() * out, z, out);
        if (layer.activation != Activation::kIdentity)
          activate(layer.activation, z, grad != nullptr ? floats(at.layer[l].slope) : nullptr, out * kEdge);
        if (l == last) break;
        for (int64_t r = 0; r < out_blocks; ++r) {
          const FloatBlock block(z + r * kEdge * kEdge, kEdge, 1, out - r * kEdge, kEdge);
          pack_block<Terms, Side::kRight, Sum::kDown>(block, words(at.operand, r));
          if (grad != nullptr)
            pack_block<Terms, Side::kRight, Sum::kAcross>(block, words(at.layer[l + 1].h, r * kTileSteps + step));
        }
        h = words(at.operand, 0);
      }
    }

    // From the gradient with respect to the outputs of a panel, at z, to dz of every layer.
    void backward(Multiplier& multiplier, int64_t step) const {
      float* z = floats(at.z);
      for (int l = last; l >= 0; --l) {
        const Layer& layer = spec.layer[l];
        const int64_t out = layer.out_channels, out_blocks = blocks_of(out);
        if (layer.activation != Activation::kIdentity)
          for (int64_t i = 0; i < out * kEdge; i += kLanes)
            store(z + i, load<vfloat>(z + i) * load<vfloat>(floats(at.layer[l].slope) + i));
        float* sums = floats(at.layer[l].dz_sums);
        for (int64_t r = 0; r < out; ++r)
          store(sums + 16 * r,
                load<vfloat>(sums + 16 * r) + load<vfloat>(z + r * kEdge) + load<vfloat>(z + r * kEdge + 16));
        for (int64_t r = 0; r < out_blocks; ++r) {
          const FloatBlock block(z + r * kEdge * kEdge, kEdge, 1, out - r * kEdge, kEdge);
          pack_block<Terms, Side::kLeft, Sum::kAcross>(block, words(at.layer[l].dz, r * kTileSteps + step));
          if (l > 0) pack_block<Terms, Side::kRight, Sum::kDown>(block, words(at.operand, r));
        }
        if (l > 0)
          multiply_panel<Terms>(multiplier, words(at.layer[l].weight_columns, 0), words(at.operand, 0), out, z,
                                layer.inputs());
      }
    }

    void add_gradients(Multiplier& multiplier, int64_t begin, int64_t samples, bool set) const {
      for (int l = 0; l <= last; ++l) {
        const Layer& layer = spec.layer[l];
        float* weight_grad = grad + at.layer[l].params;
        const uint32_t* right = l > 0 ? words(at.layer[l].h, 0) : packed.x_gradient(begin);
        add_weight_gradient<Terms>(multiplier, layer, samples, words(at.layer[l].dz, 0), kTileSteps, right,
                                   l > 0 ? kTileSteps : packed.steps, set, weight_grad);
        float* bias_grad = weight_grad + layer.inputs() * layer.out_channels;
        for (int64_t r = 0; r < layer.out_channels; ++r)
          bias_grad[r] = (set ? 0 : bias_grad[r]) +
                         static_cast<float>(sum_lanes(load<vfloat>(floats(at.layer[l].dz_sums) + 16 * r)));
      }
    }
  };
};

// Dense layers that take less time than in float32: what goes into a unit and comes out of it is packed, in whole
// blocks, in the time of some 8 products a term.
template <int Terms>
static bool serves_dense(const NetworkSpec& spec, const Batch* batch) {
  if (!all_dense(spec)) return false;
  int64_t products = 0, units = 0;
  for (int l = 0; l < spec.layers; ++l) {
    products += spec.layer[l].inputs() * spec.layer[l].out_channels;
    units += blocks_of(spec.layer[l].out_channels) * kEdge;
  }
  return products >= 8 * Terms * units && (batch == nullptr || Multiplier::pays(spec, *batch));
}

template <int Terms>
static constexpr NetworkKernels kBlockKernels = {
    Terms == 1 ? Precision::kMedium : Precision::kHigh,
    BlockNetwork<Terms>::kTileSamples,
    BlockNetwork<Terms>::kTilesInSum,
    serves_dense<Terms>,
    BlockNetwork<Terms>::chunk_bytes,
    BlockNetwork<Terms>::pack,
    BlockNetwork<Terms>::scratch_bytes,
    BlockNetwork<Terms>::particle,
    Multiplier::multiply_adds,
};

// Those of float32 where the level does not multiply operands of so many terms faster.
template <int Terms>
static constexpr const NetworkKernels* block_kernels() {
  if constexpr (Terms <= Multiplier::kMostTerms)
    return &kBlockKernels<Terms>;
  else
    return &network_kernels;
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
