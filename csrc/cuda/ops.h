// The ops of the CUDA engine, each in a source of its own. Pointers are to the device's memory; all work is queued on
// the stream, and nobody waits for it. A status is one word, kFine before (cuda/rows.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/network.h"
#include "common/resampling.h"

namespace fastsmc::cuda {

// Where work goes, and where its scratch memory comes from: at least until the work is queued.
struct Queue {
  void* stream;
  std::function<void*(int64_t bytes)> memory;

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(memory(count * static_cast<int64_t>(sizeof(T))));
  }
};

// The longest rows that one block takes whole, and the most parts of a longer one; tests choose less.
constexpr int64_t kAlone = 4096;
struct Cut {
  int64_t alone = kAlone, parts = 1024;
};

// Why there is no device for the engine, or nothing; "cuda", or "cpu" where the engine is its host twin; what built it.
std::string unavailable();
std::string device();
std::string built_with();
size_t shared_memory();  // bytes that a block may have

// For tests of the host twin: whether blocks, and threads between barriers, run from the last to the first.
void run_backwards(bool);

// A status that is fine so far, in scratch memory.
int64_t* new_status(const Queue&);

// from [n] as another type, to [n], which may be from; NaN or -1 where a status, if there is one, is not fine. Between
// floats, and between integers.
template <class From, class To>
void deliver(const Queue&, int64_t n, const From* from, To* to, const int64_t* status);

// What the random numbers of a call have in common (common/philox.h).
struct Names {
  uint64_t seed;
  uint32_t iteration, stream, first_slot;
};

// out [slots, numbers]
void philox_integers(const Queue&, uint32_t* out, int64_t slots, int64_t numbers, const Names&);
void uniform(const Queue&, double* out, int64_t slots, int64_t numbers, const Names&);
void standard_normal(const Queue&, float* out, int64_t slots, int64_t numbers, const Names&);

// log_weights, weights [rows, n]; log_sum, ess [rows]. T is float or double.
template <class T>
void normalize_log_weights(const Queue&, Cut, int64_t rows, int64_t n, const T* log_weights, T* weights, T* log_sum,
                           T* ess, int64_t* status);

// weights [rows, n], log weights if `log`; u [rows] for systematic, else [rows, m]; ancestors [rows, m], sorted.
template <class T>
void resample(const Queue&, Cut, Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights,
              Uniforms u, int64_t* ancestors, int64_t* status);

// log_weights, ancestors, offspring, normalized [rows, n]; log_sum, ess [rows]. Rows whose ess is below threshold * n
// are resampled, their ancestors permuted; the others stay as they are.
template <class T>
void adaptive_resample(const Queue&, Cut, Scheme scheme, double threshold, int64_t rows, int64_t n,
                       const T* log_weights, Uniforms u, int64_t* ancestors, int64_t* offspring, T* normalized,
                       T* log_sum, T* ess, int64_t* status);

// ancestors [rows, m] -> counts [rows, n]
void offspring(const Queue&, Cut, int64_t rows, int64_t m, int64_t n, const int64_t* ancestors, int64_t* counts,
               int64_t* status);

// ancestors [rows, n] -> permuted [rows, n], which must not overlap
void permute_ancestors(const Queue&, Cut, int64_t rows, int64_t n, const int64_t* ancestors, int64_t* permuted,
                       int64_t* status);

// particles [n] and out [m] of row_bytes each; out may be particles.
void gather_particles(const Queue&, int64_t n, int64_t m, int64_t row_bytes, const void* particles,
                      const int64_t* ancestors, void* out, int64_t* status);

struct State {
  int64_t count, dim;
  const float* particles;  // [count, dim]
  float* momentum;         // [count, dim]
  const float* grad;       // [count, dim], of the log-likelihood
  const float* precision;  // [dim], of the prior
  const float* scale;      // [dim]; null where all are one
  const float* noise;      // [dim]; null where all are the plan's deviation
  float* out;              // [count, dim], may be particles
};

struct Refresh {
  float persistence;
  Names names;
};

// refresh may be null; energies [count, 3]: kinetic before and after the kick, of the prior.
void leapfrog(const Queue&, const State&, float kick, float drift, float likelihood_scale, const Refresh*,
              double* energies);

// Whether a block has room for a network and a tile of so many samples; the functions below serve no other.
bool network_fits(const NetworkSpec& spec, int64_t samples);
// Blocks that share the batch of a particle; a trajectory needs that to be one.
int64_t network_slices(int64_t samples);

// totals [count], the sum over the batch, in float64; gradients [count, dim] or null.
void network_log_likelihood(const Queue&, const NetworkSpec& spec, const Batch& batch, int64_t count,
                            const float* particles, double* totals, float* gradients, int64_t* status);

// outputs [count, samples, spec.outputs()]; the batch has no targets.
void network_outputs(const Queue&, const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles,
                     float* outputs);

// Leapfrog steps from particles whose gradient is given, [count, dim] each; all is overwritten.
struct Path {
  float *particles, *momentum, *gradient;
  const float *precision, *scale;  // as of State
  double *start, *end;             // [count, 3], energies of the first step and of the last
  int64_t steps;
  float size, likelihood_scale;
  bool refresh;  // the momentum, before the first step
  Refresh refreshment;
};

// totals [count], at the end.
void network_trajectory(const Queue&, const NetworkSpec& spec, const Batch& batch, int64_t count, const Path& path,
                        double* totals, int64_t* status);

}  // namespace fastsmc::cuda
