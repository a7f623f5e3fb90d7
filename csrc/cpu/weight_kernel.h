// Weights: the largest, exponentials with their sums, fixed-point masses, and the comb of systematic
// resampling.
//
// One read of the input each; arithmetic in float64 and 64-bit integers, in groups of 8 at every level, so
// that float sums have the same order, and all results the same bits, at every level.
#pragma once

#include "common/fixed_scan.h"
#include "common/weight_exp.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

#define FASTSMC_INLINE __attribute__((always_inline))

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int kGroup = 8;
constexpr int kParts = kGroup / kLanes64;  // vectors in a group

typedef float vfloat_narrow __attribute__((vector_size(FASTSMC_VECTOR_BYTES / 2)));

static inline vdouble load_doubles(const double* from) {
  return load<vdouble>(from);
}
// Written out, since GCC 12 converts a wide vector in halves through memory; the masked form, since the plain
// one of its AVX-512 header draws a false warning.
static inline vdouble load_doubles(const float* from) {
#if FASTSMC_USE_AVX512
  return (vdouble)_mm512_maskz_cvtps_pd(0xFF, _mm256_loadu_ps(from));
#elif FASTSMC_USE_AVX2
  return (vdouble)_mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  return __builtin_convertvector(load<vfloat_narrow>(from), vdouble);
#endif
}
static inline void store_doubles(double* to, vdouble v) {
  store(to, v);
}
static inline void store_doubles(float* to, vdouble v) {
  store(to, __builtin_convertvector(v, vfloat_narrow));
}

// Calls work(values of a group, its first index, its size) for all of x, the last group filled up with
// `filler`.
template <class T, class Work>
static inline void for_groups(const T* x, int64_t n, T filler, const Work& work) {
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) work(x + i, i, int64_t{kGroup});
  if (i == n) return;
  T last[kGroup];
  for (int k = 0; k < kGroup; ++k) last[k] = i + k < n ? x[i + k] : filler;
  work(static_cast<const T*>(last), i, n - i);
}

template <class T, bool kLog>
static double largest(const T* values, int64_t n) {
  constexpr double kHuge = __DBL_MAX__, kNone = kLog ? -__builtin_inf() : 0;
  vdouble top[kParts];
  vlong good[kParts];
  for (int p = 0; p < kParts; ++p) {
    top[p] = splat<vdouble>(kNone);
    good[p] = splat<vlong>(int64_t{-1});
  }
  for_groups(values, n, static_cast<T>(kNone), [&](const T* group, int64_t, int64_t) FASTSMC_INLINE {
    for (int p = 0; p < kParts; ++p) {
      const vdouble v = load_doubles(group + p * kLanes64);
      good[p] &= v <= kHuge;
      if (!kLog) good[p] &= v >= 0.;
      top[p] = v > top[p] ? v : top[p];
    }
  });
  double result = kNone;
  for (int p = 0; p < kParts; ++p)
    for (int lane = 0; lane < kLanes64; ++lane) {
      if (good[p][lane] == 0) return __builtin_nan("");
      if (top[p][lane] > result) result = top[p][lane];
    }
  return result;
}

static inline double sum_parts(const vdouble* parts) {
  double sum = 0;
  for (int p = 0; p < kParts; ++p)
    for (int lane = 0; lane < kLanes64; ++lane) sum += parts[p][lane];
  return sum;
}

template <class T>
static ExpSums exp_sums(const T* log_weights, int64_t n, double shift) {
  vdouble total[kParts] = {}, squares[kParts] = {};
  const T filler = -static_cast<T>(__builtin_inf());
  for_groups(log_weights, n, filler, [&](const T* group, int64_t, int64_t) FASTSMC_INLINE {
    for (int p = 0; p < kParts; ++p) {
      const vdouble w = exp64<vulong>(load_doubles(group + p * kLanes64) - shift);
      total[p] += w;
      squares[p] += w * w;
    }
  });
  return {sum_parts(total), sum_parts(squares)};
}

template <class T>
static void exp_divided(const T* log_weights, int64_t n, double shift, double divisor, T* weights) {
  for_groups(log_weights, n, T{0}, [&](const T* group, int64_t i, int64_t count) FASTSMC_INLINE {
    T result[kGroup];
    for (int p = 0; p < kParts; ++p) {
      const vdouble w = exp64<vulong>(load_doubles(group + p * kLanes64) - shift);
      store_doubles(result + p * kLanes64, w / divisor);
    }
    memcpy(weights + i, result, static_cast<size_t>(count) * sizeof result[0]);
  });
}

struct VectorShift {
#if FASTSMC_USE_AVX512
  static vulong left(vulong x, vlong by) { return (vulong)_mm512_maskz_sllv_epi64(0xFF, (__m512i)x, (__m512i)by); }
  static vulong right(vulong x, vlong by) { return (vulong)_mm512_maskz_srlv_epi64(0xFF, (__m512i)x, (__m512i)by); }
#elif FASTSMC_USE_AVX2
  static vulong left(vulong x, vlong by) { return (vulong)_mm256_sllv_epi64((__m256i)x, (__m256i)by); }
  static vulong right(vulong x, vlong by) { return (vulong)_mm256_srlv_epi64((__m256i)x, (__m256i)by); }
#else
  static vulong left(vulong x, vlong by) {
    for (int lane = 0; lane < kLanes64; ++lane) x[lane] = fixed::Shift::left(x[lane], by[lane]);
    return x;
  }
  static vulong right(vulong x, vlong by) {
    for (int lane = 0; lane < kLanes64; ++lane) x[lane] = fixed::Shift::right(x[lane], by[lane]);
    return x;
  }
#endif
};

// Calls work(masses of part p, p, index of the group) for all weights. Adding +0 makes a negative zero
// positive.
template <bool kLog, class T, class Work>
static inline void for_masses(const T* weights, int64_t n, const MassScale& scale, const Work& work) {
  const T filler = kLog ? -static_cast<T>(__builtin_inf()) : T{0};
  for_groups(weights, n, filler, [&](const T* group, int64_t i, int64_t) FASTSMC_INLINE {
    for (int p = 0; p < kParts; ++p) {
      const vdouble v = load_doubles(group + p * kLanes64);
      const vdouble w = kLog ? exp64<vulong>(v - scale.shift) : v + 0.;
      work(fixed::quantise<VectorShift, vlong>((vulong)w, scale.exponent), p, i);
    }
  });
}

template <class T>
static uint64_t sum_masses(const T* weights, int64_t n, MassScale scale) {
  vulong sums[kParts] = {};
  const auto add = [&](vulong q, int p, int64_t) FASTSMC_INLINE { sums[p] += q; };
  scale.log ? for_masses<true>(weights, n, scale, add) : for_masses<false>(weights, n, scale, add);
  uint64_t sum = 0;
  for (int p = 0; p < kParts; ++p)
    for (int lane = 0; lane < kLanes64; ++lane) sum += sums[p][lane];
  return sum;
}

template <class T>
static void masses(const T* weights, int64_t n, MassScale scale, uint64_t* out) {
  const auto keep = [&](vulong q, int p, int64_t i) FASTSMC_INLINE { store(out + i + p * kLanes64, q); };
  scale.log ? for_masses<true>(weights, n, scale, keep) : for_masses<false>(weights, n, scale, keep);
}

// The number of teeth below c is ceil(c M / T - R / T). Float64 tells which integer that is, except where it
// comes closer to one than its error of at most M 2^-47: such a chunk is counted again by exact division.
static void comb(const fixed::Share& share, uint64_t offset, uint64_t start, int64_t n, uint64_t* masses,
                 int64_t* below) {
  for (int64_t i = 0; i < n; ++i) masses[i] = start += masses[i];
  for (int64_t i = n; i % kGroup != 0; ++i) masses[i] = start;
  constexpr double kMagic = 0x1.8p52;
  const double ratio = share.ratio * 0x1p11, margin = static_cast<double>(share.samples) * 0x1p-46;
  const double shift = static_cast<double>(offset) / static_cast<double>(share.total);
  vlong unsure{};
  for (int64_t i = 0; i < n; i += kLanes64) {
    const vulong c = load<vulong>(masses + i) >> 11;  // below 2^52: the fraction bits of 2^52 + c
    const vdouble x = ((vdouble)(c | 0x4330000000000000u) - 0x1p52) * ratio - shift;
    const vdouble rounded = x + kMagic, distance = x - (rounded - kMagic);
    unsure |= (distance < margin) & (distance > -margin);
    store(below + i, (vlong)rounded - (vlong)splat<vdouble>(kMagic) - (distance > 0.));  // true is -1
  }
  int64_t recount = 0;
  for (int lane = 0; lane < kLanes64; ++lane) recount |= unsure[lane];
  if (recount != 0)
    for (int64_t i = 0; i < n; ++i) below[i] = fixed::positions_below(masses[i], share, offset);
}

template <class T>
static constexpr WeightKernelsOf<T> kernels_of() {
  return {largest<T, false>, largest<T, true>, exp_sums<T>, exp_divided<T>, sum_masses<T>, masses<T>};
}

static const WeightKernels weight_kernels = {kernels_of<float>(), kernels_of<double>(), comb};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL

#undef FASTSMC_INLINE
