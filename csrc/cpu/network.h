// All particles of a network over a shared batch: log-likelihood, gradient, outputs, and whole leapfrog trajectories.
#pragma once

#include "cpu/kernels.h"

namespace fastsmc::cpu {

// log_likelihood [count], the sum over the batch, in float64; grad [count, num_params] or null.
// Returns the row of the first label outside [0, outputs), or -1 where there is none; then nothing is computed.
int64_t network_log_likelihood(const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles,
                               double* log_likelihood, float* grad);

// outputs [count, samples, spec.outputs()]; the batch has no targets.
void network_outputs(const NetworkSpec& spec, const Batch& batch, int64_t count, const float* particles,
                     float* outputs);

// The state of all particles along a trajectory: position, momentum and gradient [count, num_params], overwritten.
struct Phase {
  int64_t count;
  uint32_t first_slot;
  float *position, *momentum, *grad;
  double* log_likelihood;  // [count], at the end
  UpdateSums* start;       // [count], of the first half kick
  UpdateSums* end;         // [count], of the last
};

// `steps` leapfrog steps of length `step_size` from positions whose gradient is given; plan says all but kick and
// drift. The refreshment it asks for is made once, at the start. Returns as network_log_likelihood does.
int64_t trajectory(const NetworkSpec& spec, const Batch& batch, UpdatePlan plan, float step_size, int64_t steps,
                   const Phase& phase);

}  // namespace fastsmc::cpu
