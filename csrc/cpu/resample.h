// Ancestors from weights and uniform numbers, and what is done with ancestors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/resampling.h"
#include "cpu/status.h"

namespace fastsmc::cpu {

// weights [rows, n], log weights if `log`; u [rows] for systematic, else [rows, m]; ancestors [rows, m],
// sorted.
template <class T>
Status resample(Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights, Uniforms u,
                int64_t* ancestors);

// log_weights, ancestors, counts, normalized [rows, n]; log_sum, ess [rows]. Rows whose ess is below threshold * n are
// resampled, their ancestors permuted; the others stay as they are.
template <class T>
Status adaptive_resample(Scheme scheme, double threshold, int64_t rows, int64_t n, const T* log_weights, Uniforms u,
                         int64_t* ancestors, int64_t* counts, T* normalized, T* log_sum, T* ess);

// ancestors [rows, m] -> counts [rows, n]
Status offspring(int64_t rows, int64_t m, int64_t n, const int64_t* ancestors, int64_t* counts);

// ancestors [rows, n] -> permuted [rows, n], which must not overlap
Status permute_ancestors(int64_t rows, int64_t n, const int64_t* ancestors, int64_t* permuted);

// particles [n] and out [m] of row_bytes each; out may be particles.
Status gather_particles(int64_t n, int64_t m, size_t row_bytes, const void* particles, const int64_t* ancestors,
                        void* out);

}  // namespace fastsmc::cpu
