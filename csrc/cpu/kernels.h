// The table of functions that exist once per instruction-set level. Plain pointers and plain structs only:
// what stands behind them is compiled with flags that the caller may not run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/fixed_scan.h"
#include "common/network.h"

namespace fastsmc::cpu {

// Part of a batch, packed once and read by all particles. What `data` holds is the business of the kernels that packed
// it.
struct Chunk {
  int64_t begin, samples;  // of the batch
  bool for_gradient, has_targets, has_weights;
  char* data;
};

struct Tiles {
  int64_t begin, end;  // end may lie beyond the chunk
};

// Groups [begin, end) of the tiles of a chunk, of which there are `count` even ones; each has a sum of its own.
struct Groups {
  int64_t tiles, count, begin, end;
  Tiles operator[](int64_t group) const { return {group * tiles / count, (group + 1) * tiles / count}; }
};

// The gradient of one particle, to which groups are added in order, each first summed up in `sum`, as long. A fresh one
// is set to that of the first group, so that one group needs no `sum`. The total is null where none is wanted.
struct Gradient {
  float *total, *sum;
  bool fresh;
};

// One set per way of computing. A chunk is worked on by tiles of `tile` samples, so it should be a multiple of them
// long; at most `tiles_in_sum` make one sum of the gradient, since rounding grows with them.
struct NetworkKernels {
  Precision precision;
  int64_t tile, tiles_in_sum;
  // Whether these kernels know all layers, and are worth using for some batch, or for this one where it is not null.
  bool (*serves)(const NetworkSpec&, const Batch*);
  size_t (*chunk_bytes)(const NetworkSpec&, const Chunk&);
  void (*pack)(const NetworkSpec&, const Batch&, const Chunk&, int64_t tile);
  size_t (*scratch_bytes)(const NetworkSpec&);
  // The log-likelihood of one particle over some groups of a chunk, and its gradient. Where outputs is not null, they
  // are written there, [chunk.samples, outputs], and nothing else is done.
  double (*particle)(const NetworkSpec&, const Chunk&, Groups, const float* params, Gradient, float* outputs,
                     char* scratch);
  // Products and sums alone, which bound every network; returns how many operations they were.
  double (*multiply_adds)(int64_t rounds);
};

// One pass over the weights of one particle:
//   v <- rho v + noise xi                        (only where refresh is set; xi counter-based normal; 0 v is 0)
//   v <- v + kick scale (likelihood_scale g - precision theta)
//   theta' <- theta + drift scale v
// v is the momentum of theta / scale, which has unit mass.
struct UpdatePlan {
  int64_t dim;
  float kick, drift, likelihood_scale, persistence;
  bool refresh;
  uint64_t seed;
  uint32_t iteration, stream;
  const float* precision;  // [dim], of the Gaussian prior
  const float* scale;      // [dim]; null where all are one
  const float* noise;      // [dim]; null where all are sqrt(1 - rho^2)
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
  double largest, total, squares;
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
  // exp(log weight - largest) rounded to T, their largest log weight, and sums of the exponentials before rounding.
  ExpSums (*exponentials)(const T* log_weights, int64_t n, T* out);
  void (*scale)(T* weights, int64_t n, double factor);
  // Fixed-point masses (common/fixed_scan.h) of weights, or of exp(log weight - shift): sums of them; or each of
  // them, with zeros up to a multiple of 8.
  fixed::Sums (*sum_masses)(const T* weights, int64_t n, MassScale scale);
  void (*masses)(const T* weights, int64_t n, MassScale scale, uint64_t* out);
  // How many teeth of the comb lie below the prefix sum of masses after `start` at each weight, with room up to a
  // multiple of 8; false if some could not be told by float64.
  bool (*comb)(const T* weights, int64_t n, MassScale scale, const fixed::Share& share, uint64_t offset, uint64_t start,
               int64_t* below);
};

struct WeightKernels {
  WeightKernelsOf<float> float32;
  WeightKernelsOf<double> float64;
  void (*exp)(double* x, int64_t n);  // of x <= 0, in place
  // Writes `ancestor`, `ancestor` + 1, ... to out, each up to where below[i] says, from below[-1].
  void (*expand)(int64_t ancestor, const int64_t* below, int64_t n, int64_t* out);
};

struct Kernels {
  const char* level;
  const NetworkKernels* network[kPrecisions];
  UpdateKernels update;
  WeightKernels weights;
};

// The level in use: the highest that the processor has, or the one that FASTSMC_SIMD names.
const Kernels& kernels();
// The kernels for a network at its precision, or at `highest` where those do not serve it, or not this batch of it.
const NetworkKernels& network_kernels(const NetworkSpec& spec, const Batch* batch = nullptr);
// The levels this processor can run, lowest first; returns how many were written.
int available_levels(const char** names, int capacity);

const Kernels& kernels_none();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512bf16();
const Kernels& kernels_amx();
#endif

}  // namespace fastsmc::cpu
