// Ancestors from weights and uniform numbers, and what is done with ancestors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/fixed_scan.h"
#include "cpu/status.h"

namespace fastsmc::cpu {

enum class Scheme : int { kSystematic, kStratified, kMultinomial, kResidual };
constexpr const char* kSchemes[] = {"systematic", "stratified", "multinomial", "residual"};

// Uniform numbers of either float type.
struct Uniforms {
  const void* data;
  bool is_double;
  double operator[](int64_t i) const {
    return is_double ? static_cast<const double*>(data)[i] : static_cast<const float*>(data)[i];
  }
  bool valid(int64_t i) const { return (*this)[i] >= 0 && (*this)[i] < 1; }
  uint64_t bits(int64_t i) const { return fixed::bits_of((*this)[i]); }
  Uniforms from(int64_t i) const {
    return {static_cast<const char*>(data) + i * static_cast<int64_t>(is_double ? sizeof(double) : sizeof(float)),
            is_double};
  }
};

// weights [rows, n], log weights if `log`; u [rows] for systematic, else [rows, m]; ancestors [rows, m],
// sorted.
template <class T>
Status resample(Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights, Uniforms u,
                int64_t* ancestors);

// ancestors [rows, m] -> counts [rows, n]
Status offspring(int64_t rows, int64_t m, int64_t n, const int64_t* ancestors, int64_t* counts);

// ancestors [rows, n] -> permuted [rows, n], which must not overlap
Status permute_ancestors(int64_t rows, int64_t n, const int64_t* ancestors, int64_t* permuted);

// particles [n] and out [m] of row_bytes each; out may be particles.
Status gather_particles(int64_t n, int64_t m, size_t row_bytes, const void* particles, const int64_t* ancestors,
                        void* out);

}  // namespace fastsmc::cpu
