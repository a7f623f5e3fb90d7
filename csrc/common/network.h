// What a network is, and the batch that all particles share. Header for host and device; no Python, no torch.
#pragma once

#include "common/activation.h"
#include "common/loss.h"

namespace fastsmc {

// torch's names: float32 throughout, operands as sums of two bfloat16 numbers, operands in bfloat16.
enum class Precision : int { kHighest, kHigh, kMedium };
constexpr int kPrecisions = 3;
constexpr int kMaxLayers = 64;

enum class LayerKind : int64_t { kDense, kConvolution };

// One layer: dense from in_channels * in_height * in_width inputs to out_channels outputs, or a convolution of stride 1
// with square kernel and zero padding, then the activation, then a maximum over squares of pool x pool.
// Parameters as torch lays them out: the weight [out_channels, in_channels, kernel, kernel] or [out, in], then the
// bias. All fields are 64 bits wide: the binding hands over rows of integers.
struct Layer {
  LayerKind kind;
  Activation activation;
  int64_t in_channels, in_height, in_width;
  int64_t out_channels, kernel, padding, pool;

  bool dense() const { return kind == LayerKind::kDense; }
  int64_t inputs() const { return in_channels * in_height * in_width; }
  int64_t height() const { return dense() ? 1 : in_height + 2 * padding - kernel + 1; }  // before pooling
  int64_t width() const { return dense() ? 1 : in_width + 2 * padding - kernel + 1; }
  int64_t outputs() const { return out_channels * (height() / pool) * (width() / pool); }
  int64_t terms() const { return dense() ? inputs() : in_channels * kernel * kernel; }  // of the sum behind one output
  int64_t num_params() const { return out_channels * (terms() + 1); }
};

// A network: its layers in order; one particle holds the parameters of each after the other.
struct NetworkSpec {
  int layers;
  const Layer* layer;
  Likelihood likelihood;
  float noise;  // standard deviation of the Gaussian likelihood
  Precision precision;

  int64_t inputs() const { return layer[0].inputs(); }
  int64_t outputs() const { return layer[layers - 1].outputs(); }
  int64_t num_params() const {
    int64_t count = 0;
    for (int l = 0; l < layers; ++l) count += layer[l].num_params();
    return count;
  }
};

// The batch: x [samples, inputs] with strides in elements, targets by rows; labels are int64 for the
// categorical likelihood, targets float [samples, outputs] for the others; neither where only outputs are wanted.
// weights [samples] are factors of the samples' log-likelihoods; null where all are one.
struct Batch {
  int64_t samples;
  const float* x;
  int64_t row_stride, column_stride;
  const int64_t* labels;
  const float* targets;
  const float* weights;

  bool has_targets() const { return labels != nullptr || targets != nullptr; }
};

}  // namespace fastsmc
