// All particles of a fully connected network over a shared batch.
#pragma once

#include "cpu/kernels.h"

namespace fastsmc::cpu {

// The batch: x [samples, inputs] with strides in elements, targets by rows; labels are int64 for the
// categorical likelihood, targets float [samples, outputs] for the others.
struct Batch {
  int64_t samples;
  const float* x;
  int64_t row_stride, column_stride;
  const int64_t* labels;
  const float* targets;
};

int64_t mlp_num_params(const MlpSpec& spec);

// log_likelihood [count], the sum over the batch, in float64; grad [count, num_params] or null.
// Returns the row of the first label outside [0, outputs), or -1 where there is none; then nothing is
// computed.
int64_t mlp_log_likelihood(const MlpSpec& spec, const Batch& batch, int64_t count, const float* particles,
                           double* log_likelihood, float* grad);

// outputs [count, samples, widths[layers]]; the batch's labels and targets are not read.
void mlp_outputs(const MlpSpec& spec, const Batch& batch, int64_t count, const float* particles, float* outputs);

}  // namespace fastsmc::cpu
