// The resampling schemes, and the numbers they take. Header for host and device; no Python, no torch.
#pragma once

#include "common/fixed_scan.h"

namespace fastsmc {

enum class Scheme : int { kSystematic, kStratified, kMultinomial, kResidual };
constexpr const char* kSchemes[] = {"systematic", "stratified", "multinomial", "residual"};

// Uniform numbers of either float type.
struct Uniforms {
  const void* data;
  bool is_double;
  FASTSMC_HD double operator[](int64_t i) const {
    return is_double ? static_cast<const double*>(data)[i] : static_cast<const float*>(data)[i];
  }
  FASTSMC_HD bool valid(int64_t i) const { return (*this)[i] >= 0 && (*this)[i] < 1; }
  FASTSMC_HD uint64_t bits(int64_t i) const { return fixed::bits_of((*this)[i]); }
  FASTSMC_HD Uniforms from(int64_t i) const {
    return {static_cast<const char*>(data) + i * static_cast<int64_t>(is_double ? sizeof(double) : sizeof(float)),
            is_double};
  }
};

}  // namespace fastsmc
