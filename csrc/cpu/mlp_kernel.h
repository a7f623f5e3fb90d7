// Log-likelihood and gradient of one particle's fully connected network over a packed chunk of the batch.
//
// Samples are vector lanes. A panel is kPanel samples side by side, so activations are [width][kPanel] and
// everything that happens per sample (softmax, activation, loss) is vertical; no weight is ever packed: W is
// read by rows as scalars. One micro-kernel, C[rows, kPanel] = init + sum_k a(row, k) B[k, kPanel], serves
// all three products:
//
//   forward          z   = b + W h            a = W[row, k]       B = panel of h
//   input gradient   dh  = W^T dz             a = W[k, row]       B = panel of dz
//   weight gradient  dW += dz h^T             a = dz[row, sample] B = h by rows, [sample][kPanel inputs]
//
// A tile of kTile samples goes forward through all layers and back, so that the scratch of a particle is
// kTile * sum of hidden widths, whatever the batch. Memory traffic: per tile one read of W for the forward
// pass and one read and write of dW (both stay in L2 for up to about 100,000 weights), the packed chunk once.
// Gradients are summed in float32 within a tile and over tiles in order, the log-likelihood over tiles in
// float64.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

// The register tile: kRows x kColumns accumulators, with room left for B and one broadcast.
#if FASTSMC_VECTOR_BYTES == 64
constexpr int kRows = 12, kColumns = 2;
#else
constexpr int kRows = 6, kColumns = 2;
#endif
constexpr int64_t kPanel = kColumns * kLanes;
constexpr int64_t kTile = 128;
constexpr int64_t kDepth = 128;  // terms in one chain of additions, whose rounding grows with its length

enum class Init { kZero, kRowBias, kAccumulate };

// Operands of the micro-kernel: c[row, :] = start + sum over k < depth of a[row * a_row + k * a_column] b[k, :].
struct Product {
  int64_t depth;
  const float* a;
  int64_t a_row, a_column;
  const float* b;  // rows of kPanel floats
  float* c;
  int64_t c_row;
  const float* bias;
};

template <int Rows, Init Start>
static void micro_kernel(const Product& p) {
  vfloat sum[Rows][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) {
      sum[r][v] = Start == Init::kRowBias ? splat<vfloat>(p.bias[r]) : vfloat{};
      if (Start == Init::kAccumulate) __builtin_prefetch(p.c + r * p.c_row + v * kLanes, 1);
    }
  const int64_t a_row = p.a_row, a_column = p.a_column;
  const float *a = p.a, *b = p.b;
  for (int64_t k = 0; k < p.depth; ++k, a += a_column, b += kPanel) {
    vfloat column[kColumns];
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) column[v] = load<vfloat>(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const vfloat factor = splat<vfloat>(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kColumns; ++v) sum[r][v] = fma(factor, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) {
      float* c = p.c + r * p.c_row + v * kLanes;
      store(c, Start == Init::kAccumulate ? load<vfloat>(c) + sum[r][v] : sum[r][v]);
    }
}

template <Init Start, int... Row>
struct MicroKernels {
  static constexpr void (*by_rows[])(const Product&) = {micro_kernel<Row + 1, Start>...};
};
#if FASTSMC_VECTOR_BYTES == 64
template <Init Start>
using MicroKernelTable = MicroKernels<Start, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11>;
#else
template <Init Start>
using MicroKernelTable = MicroKernels<Start, 0, 1, 2, 3, 4, 5>;
#endif

// All rows of C, kRows at a time.
template <Init Start>
static inline void multiply_rows(Product p, int64_t rows) {
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t count = rows - r < kRows ? rows - r : kRows;
    MicroKernelTable<Start>::by_rows[count - 1](p);
    p.a += count * p.a_row;
    p.c += count * p.c_row;
    if (Start == Init::kRowBias) p.bias += count;
  }
}

// The whole product, kDepth terms at a time: a block of B stays in L1 for all rows.
template <Init Start>
static void multiply(Product p, int64_t rows) {
  const int64_t depth = p.depth;
  p.depth = depth < kDepth ? depth : kDepth;
  multiply_rows<Start>(p, rows);
  for (int64_t k = kDepth; k < depth; k += kDepth) {
    p.a += kDepth * p.a_column;
    p.b += kDepth * kPanel;
    p.depth = depth - k < kDepth ? depth - k : kDepth;
    multiply_rows<Init::kAccumulate>(p, rows);
  }
}

// z becomes act(z); act'(z) goes to slope unless that is null.
template <class F>
static inline void map_panel(float* z, float* slope, int64_t count, F value_and_slope) {
  for (int64_t i = 0; i < count; i += kLanes) {
    vfloat derivative;
    store(z + i, value_and_slope(load<vfloat>(z + i), derivative));
    if (slope != nullptr) store(slope + i, derivative);
  }
}

static void activate(Activation activation, float* z, float* slope, int64_t count) {
  const vfloat zero{}, one = zero + 1.f;
  switch (activation) {
    case Activation::kIdentity:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) { return d = one, x; });
    case Activation::kRelu:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        d = x > 0 ? one : zero;
        return x < 0 ? zero : x;  // NaN stays NaN
      });
    case Activation::kTanh:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        const vfloat t = tanh(x);
        d = 1.f - t * t;
        return t;
      });
    case Activation::kGelu:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        vfloat density, cdf;
        normal_density_and_cdf(x, density, cdf);
        d = fma(x, density, cdf);
        return x * cdf;
      });
    case Activation::kSilu:
      return map_panel(z, slope, count, [&](vfloat x, vfloat& d) {
        const vfloat s = sigmoid(x);
        d = s * fma(x, one - s, one);
        return x * s;
      });
  }
}

// Log-likelihood of kLanes samples from their outputs z [width][kPanel]; z becomes the gradient with respect
// to z.
static inline vfloat categorical(float* z, int64_t width, vint label) {
  vfloat top = load<vfloat>(z), chosen{}, total{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat logit = load<vfloat>(z + c * kPanel);
    top = max(top, logit);
    chosen = label == static_cast<int32_t>(c) ? logit : chosen;
  }
  for (int64_t c = 0; c < width; ++c) {
    const vfloat e = exp(load<vfloat>(z + c * kPanel) - top);
    total += e;
    store(z + c * kPanel, e);
  }
  const vfloat inverse = 1.f / total, zero{}, one = zero + 1.f;
  for (int64_t c = 0; c < width; ++c) {
    const vfloat hit = label == static_cast<int32_t>(c) ? one : zero;
    store(z + c * kPanel, hit - load<vfloat>(z + c * kPanel) * inverse);
  }
  return chosen - top - log(total);
}

static inline vfloat bernoulli(float* z, int64_t width, const float* target) {
  vfloat sum{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat logit = load<vfloat>(z + c * kPanel), y = load<vfloat>(target + c * kPanel);
    sum += fma(y, logit, -softplus(logit));
    store(z + c * kPanel, y - sigmoid(logit));
  }
  return sum;
}

static inline vfloat gaussian(float* z, int64_t width, const float* target, float noise) {
  const float precision = 1.f / (noise * noise);
  vfloat sum{};
  for (int64_t c = 0; c < width; ++c) {
    const vfloat residual = load<vfloat>(target + c * kPanel) - load<vfloat>(z + c * kPanel);
    sum = fma(residual, residual, sum);
    store(z + c * kPanel, residual * precision);
  }
  return sum * (-.5f * precision);  // the normalising constant is added by the caller, in float64
}

// Loss of one panel of which `valid` samples are real; z becomes dz, zero for the others.
static double panel_loss(const MlpSpec& spec, float* z, int64_t width, const void* target, int64_t valid) {
  double sum = 0;
  for (int v = 0; v < kColumns; ++v) {
    float* column = z + v * kLanes;
    vfloat value{};
    switch (spec.likelihood) {
      case Likelihood::kCategorical:
        value = categorical(column, width, load<vint>(static_cast<const int32_t*>(target) + v * kLanes));
        break;
      case Likelihood::kBernoulli:
        value = bernoulli(column, width, static_cast<const float*>(target) + v * kLanes);
        break;
      case Likelihood::kGaussian:
        value = gaussian(column, width, static_cast<const float*>(target) + v * kLanes, spec.noise);
        break;
    }
    const int64_t left = valid - v * kLanes;
    if (left < kLanes) {
      const vint real = lane_numbers() < static_cast<int32_t>(left);
      value = real ? value : vfloat{};
      for (int64_t c = 0; c < width; ++c) {
        float* dz = column + c * kPanel;
        store(dz, real ? load<vfloat>(dz) : vfloat{});
      }
    }
    sum += sum_lanes(value);
  }
  return sum;
}

static void write_outputs(const float* z, int64_t width, int64_t left, float* to) {
  const int64_t count = left < kPanel ? left : kPanel;
  for (int64_t sample = 0; sample < count; ++sample)
    for (int64_t c = 0; c < width; ++c) to[sample * width + c] = z[c * kPanel + sample];
}

// bias_grad[row] += the sum of dz [width][samples] over the samples of a tile.
static void add_row_sums(float* bias_grad, const float* dz, int64_t width, int64_t samples) {
  for (int64_t row = 0; row < width; ++row) {
    vfloat sum{};
    for (int64_t i = 0; i < samples; i += kLanes) sum += load<vfloat>(dz + row * samples + i);
    bias_grad[row] += static_cast<float>(sum_lanes(sum));
  }
}

// Panels [panels][width][kPanel] to one row per unit, [width][samples].
static void join_panels(const float* dz, int64_t width, int64_t panels, float* joined) {
  for (int64_t row = 0; row < width; ++row)
    for (int64_t p = 0; p < panels; ++p)
      for (int v = 0; v < kColumns; ++v, joined += kLanes)
        store(joined, load<vfloat>(dz + (p * width + row) * kPanel + v * kLanes));
}

// grad [out, in] += dz h^T over the samples of a tile; dz [out][samples]; h by rows: column panel j at
// h_rows + j * stride.
static void add_weight_gradient(float* grad, const float* dz, int64_t outputs, int64_t inputs, int64_t samples,
                                const float* h_rows, int64_t stride) {
  Product p{samples, dz, samples, 1, h_rows, grad, inputs, nullptr};
  int64_t column = 0;
  for (; column + kPanel <= inputs; column += kPanel, p.b += stride, p.c += kPanel)
    multiply<Init::kAccumulate>(p, outputs);
  if (column == inputs) return;
  float edge[kRows * kPanel];
  const int64_t width = inputs - column;
  for (int64_t row = 0; row < outputs; row += kRows) {
    const int64_t count = outputs - row < kRows ? outputs - row : kRows;
    Product last = p;
    last.a = dz + row * samples;
    last.c = edge;
    last.c_row = kPanel;
    multiply<Init::kZero>(last, count);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < width; ++i) grad[(row + r) * inputs + column + i] += edge[r * kPanel + i];
  }
}

// Panels [panels][width][kPanel] to rows [ceil(width / kPanel)][panels * kPanel][kPanel]: samples become
// rows.
static void panels_to_rows(const float* h, int64_t width, int64_t panels, float* rows) {
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t begin = 0; begin < width; begin += kPanel) {
      const int64_t count = width - begin < kPanel ? width - begin : kPanel;
      const float* from = h + (p * width + begin) * kPanel;
      float* to = rows + (begin * panels + p * kPanel) * kPanel;
      for (int64_t sample = 0; sample < kPanel; ++sample) {
        for (int64_t i = 0; i < count; ++i) to[sample * kPanel + i] = from[i * kPanel + sample];
        for (int64_t i = count; i < kPanel; ++i) to[sample * kPanel + i] = 0.f;
      }
    }
}

// Scratch of a tile: for every layer its outputs [panels][width][kPanel], the same again for the slopes of the hidden
// layers; then dz of one layer joined, and h of one layer by rows.
static size_t mlp_scratch(const MlpSpec& spec) {
  int64_t floats = 0, widest = 0;
  for (int l = 1; l <= spec.layers; ++l) {
    floats += spec.widths[l] * kTile * (l < spec.layers ? 2 : 1);
    if (spec.widths[l] > widest) widest = spec.widths[l];
  }
  return static_cast<size_t>(floats + (widest + (widest + kPanel - 1) / kPanel * kPanel) * kTile);
}

constexpr int kMaxLayers = 64;

static double mlp_particle(const MlpSpec& spec, const MlpChunk& chunk, const float* params, float* grad,
                           float* outputs_to, float* scratch) {
  const float *weight[kMaxLayers], *bias[kMaxLayers];
  float *output[kMaxLayers], *slope[kMaxLayers];
  int64_t offset[kMaxLayers];
  int64_t at = 0, widest = 0;
  for (int l = 0; l < spec.layers; ++l) {
    const int64_t in = spec.widths[l], out = spec.widths[l + 1];
    offset[l] = at;
    weight[l] = params + at;
    bias[l] = weight[l] + in * out;
    at += in * out + out;
    output[l] = scratch;
    scratch += out * kTile;
    slope[l] = scratch;
    if (out > widest) widest = out;
    if (l + 1 < spec.layers) scratch += out * kTile;
  }
  float *joined = scratch, *rows = scratch + widest * kTile;
  const int last = spec.layers - 1;
  const int64_t inputs = spec.widths[0], outputs = spec.widths[spec.layers];
  const int64_t target_width = spec.likelihood == Likelihood::kCategorical ? 1 : outputs;

  double log_likelihood = 0;
  for (int64_t begin = 0; begin < chunk.valid; begin += kTile) {
    const int64_t left = chunk.valid - begin < kTile ? chunk.valid - begin : kTile;
    const int64_t panels = (left + kPanel - 1) / kPanel, samples = panels * kPanel;
    const float* x = chunk.x_panels + begin * inputs;
    const char* target = static_cast<const char*>(chunk.targets) + begin * target_width * 4;
    for (int64_t p = 0; p < panels; ++p) {
      const float* h = x + p * inputs * kPanel;
      for (int l = 0; l < spec.layers; ++l) {
        const int64_t in = spec.widths[l], out = spec.widths[l + 1];
        float* z = output[l] + p * out * kPanel;
        multiply<Init::kRowBias>({in, weight[l], in, 1, h, z, kPanel, bias[l]}, out);
        if (l < last)
          activate(spec.activation, z, grad != nullptr ? slope[l] + p * out * kPanel : nullptr, out * kPanel);
        h = z;
      }
      if (outputs_to != nullptr) {
        write_outputs(h, outputs, left - p * kPanel, outputs_to + (begin + p * kPanel) * outputs);
        continue;
      }
      log_likelihood += panel_loss(spec, output[last] + p * outputs * kPanel, outputs,
                                   target + p * target_width * kPanel * 4, left - p * kPanel);
    }
    if (grad == nullptr) continue;
    for (int l = last; l >= 0; --l) {
      const int64_t in = spec.widths[l], out = spec.widths[l + 1];
      const float* dz = l == last ? output[l] : slope[l];
      float* layer_grad = grad + offset[l];
      join_panels(dz, out, panels, joined);
      add_row_sums(layer_grad + in * out, joined, out, samples);
      if (l == 0) {
        add_weight_gradient(layer_grad, joined, out, in, samples, chunk.x_rows + begin * kPanel,
                            chunk.samples * kPanel);
        break;
      }
      panels_to_rows(output[l - 1], in, panels, rows);
      add_weight_gradient(layer_grad, joined, out, in, samples, rows, samples * kPanel);
      for (int64_t p = 0; p < panels; ++p) {
        float* below = output[l - 1] + p * in * kPanel;  // h of the layer below is not needed any more
        float* dz_below = slope[l - 1] + p * in * kPanel;
        multiply<Init::kZero>({out, weight[l], 1, in, dz + p * out * kPanel, below, kPanel, nullptr}, in);
        for (int64_t i = 0; i < in * kPanel; i += kLanes)
          store(dz_below + i, load<vfloat>(below + i) * load<vfloat>(dz_below + i));
      }
    }
  }
  return log_likelihood;
}

static const MlpKernels mlp_kernels = {kPanel, kTile, kMaxLayers, mlp_scratch, mlp_particle};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
