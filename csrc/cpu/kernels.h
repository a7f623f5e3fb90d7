// The table of functions that exist once per instruction-set level. Plain pointers and plain structs only:
// what stands behind them is compiled with flags that the caller may not run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/fixed_scan.h"

namespace fastsmc::cpu {

enum class Activation : int { kIdentity, kRelu, kTanh, kGelu, kSilu };
enum class Likelihood : int { kCategorical, kBernoulli, kGaussian };

// A network of fully connected layers: widths[0] inputs, widths[layers] outputs, parameters of one particle
// as torch lays them out: for each layer the weight [out, in] by rows, then the bias [out].
struct MlpSpec {
  int layers;
  const int64_t* widths;
  Activation activation;
  Likelihood likelihood;
  float noise;  // standard deviation of the Gaussian likelihood
};

// Part of a batch, packed once and read by all particles. A panel holds `panel` samples side by side:
//   x_panels [samples / panel][inputs][panel]            forward: one vector load per input
//   x_rows   [ceil(inputs / panel)][samples][panel]      weight gradient of the first layer
//   targets  [samples / panel][target_width][panel]      int32 labels or float values; samples is padded with
//   zeros
struct MlpChunk {
  int64_t samples, valid;
  const float* x_panels;
  const float* x_rows;
  const void* targets;
};

struct MlpKernels {
  int64_t panel, tile;  // samples per panel; samples whose activations are held at a time
  int max_layers;
  // floats of scratch for one particle's tile
  size_t (*scratch)(const MlpSpec&);
  // The log-likelihood of one particle over a chunk; its gradient is added to grad unless that is null.
  // Where outputs is not null, they are written there, [valid, outputs], and nothing else is done.
  double (*particle)(const MlpSpec&, const MlpChunk&, const float* params, float* grad, float* outputs, float* scratch);
};

// One pass over the weights of one particle:
//   v <- rho v + sqrt(1 - rho^2) xi              (only where refresh is set; xi counter-based normal)
//   v <- v + kick (scale g - precision theta)
//   theta' <- theta + drift v
struct UpdatePlan {
  int64_t dim;
  float kick, drift, likelihood_scale, persistence;
  bool refresh;
  uint64_t seed;
  uint32_t iteration, stream;
  const float* precision;  // [dim], of the Gaussian prior
};

struct UpdateSums {
  double kinetic_before;  // v.v/2 after the refreshment, before the kick
  double kinetic_after;   // v.v/2 after the kick
  double prior_energy;    // sum of precision theta'^2 / 2
};

struct UpdateKernels {
  UpdateSums (*leapfrog)(const UpdatePlan&, uint32_t slot, const float* particle, const float* grad, float* momentum,
                         float* out);
  void (*normal)(float* out, int64_t dim, uint64_t seed, uint32_t slot, uint32_t iteration, uint32_t stream);
  // exp, log, tanh, gelu-cdf ... of the level, for tests of their stated errors
  void (*elementary)(int function, const float* x, float* y, int64_t n);
};

// Weights in float64 whatever the input: see weight_kernel.h. T is float or double.
struct ExpSums {
  double total, squares;
};

struct MassScale {
  bool log;
  double shift;  // of log weights
  int exponent;  // of the unit: masses are weights times 2^exponent
};

template <class T>
struct WeightKernelsOf {
  // The largest entry; NaN where one is negative, infinite or NaN.
  double (*largest)(const T* weights, int64_t n);
  // The same of log weights; NaN where one is NaN or +inf.
  double (*largest_log)(const T* log_weights, int64_t n);
  // exp(log weight - shift): their sums; or divided by a number and rounded to T.
  ExpSums (*exp_sums)(const T* log_weights, int64_t n, double shift);
  void (*exp_divided)(const T* log_weights, int64_t n, double shift, double divisor, T* weights);
  // Fixed-point masses (common/fixed_scan.h) of weights, or of exp(log weight - shift): their sum; or each of
  // them, with zeros up to a multiple of 8.
  uint64_t (*sum_masses)(const T* weights, int64_t n, MassScale scale);
  void (*masses)(const T* weights, int64_t n, MassScale scale, uint64_t* out);
};

struct WeightKernels {
  WeightKernelsOf<float> float32;
  WeightKernelsOf<double> float64;
  // Inclusive prefix sums of n masses after `start`, in place, and how many teeth of the comb lie below each.
  void (*comb)(const fixed::Share& share, uint64_t offset, uint64_t start, int64_t n, uint64_t* masses, int64_t* below);
};

struct Kernels {
  const char* level;
  MlpKernels mlp;
  UpdateKernels update;
  WeightKernels weights;
};

// The level in use: the highest that the processor has, or the one that FASTSMC_SIMD names.
const Kernels& kernels();
// The levels this processor can run, lowest first; returns how many were written.
int available_levels(const char** names, int capacity);

const Kernels& kernels_none();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace fastsmc::cpu
