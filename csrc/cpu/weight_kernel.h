// Weights: the largest, exponentials with their sums, fixed-point masses, the comb of systematic resampling, and the
// writing of ancestors.
//
// Arithmetic in float64 and 64-bit integers, in groups of 8 at every level, so that float sums have the same order, and
// all results the same bits, at every level. Each works on a block that fits the first-level cache.
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
typedef int32_t vint_narrow __attribute__((vector_size(FASTSMC_VECTOR_BYTES / 2)));

static inline vdouble load_doubles(const double* from) {
  return load<vdouble>(from);
}
// Written out, since GCC 12 converts a wide vector in halves through memory; the masked form, since the plain one of
// its AVX-512 header draws a false warning.
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
#if FASTSMC_USE_AVX512
  _mm256_storeu_ps(to, _mm512_maskz_cvtpd_ps(0xFF, (__m512d)v));
#elif FASTSMC_USE_AVX2
  _mm_storeu_ps(to, _mm256_cvtpd_ps((__m256d)v));
#else
  store(to, __builtin_convertvector(v, vfloat_narrow));
#endif
}

static inline vlong load_longs(const int32_t* from) {
#if FASTSMC_USE_AVX512
  return (vlong)_mm512_maskz_cvtepi32_epi64(0xFF, _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from)));
#elif FASTSMC_USE_AVX2
  return (vlong)_mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from)));
#else
  return __builtin_convertvector(load<vint_narrow>(from), vlong);
#endif
}

// The lanes of v moved up by `by`, zeros below.
template <int by, class V>
static inline V shift_lanes(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  V from;
  for (int lane = 0; lane < lanes; ++lane) from[lane] = lane < by ? lane : lanes + lane - by;
  return __builtin_shuffle(V{}, v, from);
}

static inline vulong prefix_sums(vulong v) {
  if constexpr (kLanes64 > 1) v += shift_lanes<1>(v);
  if constexpr (kLanes64 > 2) v += shift_lanes<2>(v);
  if constexpr (kLanes64 > 4) v += shift_lanes<4>(v);
  return v;
}

static inline vint prefix_max(vint v) {
  if constexpr (kLanes > 1) v = max(v, shift_lanes<1>(v));
  if constexpr (kLanes > 2) v = max(v, shift_lanes<2>(v));
  if constexpr (kLanes > 4) v = max(v, shift_lanes<4>(v));
  if constexpr (kLanes > 8) v = max(v, shift_lanes<8>(v));
  return v;
}

static inline vulong last_lane(vulong v) {
  return __builtin_shuffle(v, splat<vlong>(int64_t{kLanes64 - 1}));
}
static inline vint last_lane(vint v) {
  return __builtin_shuffle(v, splat<vint>(kLanes - 1));
}

struct VectorShift {
#if FASTSMC_USE_AVX512
  static vulong right(vulong x, vulong by) { return (vulong)_mm512_maskz_srlv_epi64(0xFF, (__m512i)x, (__m512i)by); }
#elif FASTSMC_USE_AVX2
  static vulong right(vulong x, vulong by) { return (vulong)_mm256_srlv_epi64((__m256i)x, (__m256i)by); }
#else
  static vulong right(vulong x, vulong by) {
    for (int lane = 0; lane < kLanes64; ++lane) x[lane] = fixed::Shift::right(x[lane], by[lane]);
    return x;
  }
#endif
};

struct VectorTable {
  static vulong entry(vulong n) {
#if FASTSMC_USE_AVX512
    const __m512i low = _mm512_loadu_si512(exp_table()), high = _mm512_loadu_si512(exp_table() + 8);
    return (vulong)_mm512_maskz_permutex2var_epi64(0xFF, low, (__m512i)n, high);  // reads four bits of each index
#elif FASTSMC_USE_AVX2
    const __m256i index = _mm256_and_si256((__m256i)n, _mm256_set1_epi64x(15));
    return (vulong)_mm256_i64gather_epi64(reinterpret_cast<const long long*>(exp_table()), index, 8);
#else
    for (int lane = 0; lane < kLanes64; ++lane) n[lane] = ExpTable::entry(n[lane]);
    return n;
#endif
  }
};

static inline vdouble exp64(vdouble x) {
  return fastsmc::exp64<vulong, VectorTable>(x);
}

// Calls work(values of a group, its first index, its size) for all of x, the last group filled up with `filler`.
template <class T, class Work>
static inline void for_groups(const T* x, int64_t n, T filler, const Work& work) {
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) work(x + i, i, int64_t{kGroup});
  if (i == n) return;
  T last[kGroup];
  for (int k = 0; k < kGroup; ++k) last[k] = i + k < n ? x[i + k] : filler;
  work(static_cast<const T*>(last), i, n - i);
}

template <class T>
constexpr T kNothing = -static_cast<T>(__builtin_inf());  // as a log weight

static inline double largest_lane(const vdouble* parts) {
  double top = parts[0][0];
  for (int p = 0; p < kParts; ++p)
    for (int lane = 0; lane < kLanes64; ++lane)
      if (parts[p][lane] > top) top = parts[p][lane];
  return top;
}

static inline double sum_lanes(const vdouble* parts) {
  double sum = 0;
  for (int p = 0; p < kParts; ++p)
    for (int lane = 0; lane < kLanes64; ++lane) sum += parts[p][lane];
  return sum;
}

template <class T, bool kLog>
static double largest(const T* values, int64_t n) {
  constexpr double kHuge = __DBL_MAX__, kNone = kLog ? kNothing<double> : 0;
  vdouble top[kParts];
  vlong bad[kParts] = {};
  for (int p = 0; p < kParts; ++p) top[p] = splat<vdouble>(kNone);
  for_groups(values, n, static_cast<T>(kNone), [&](const T* group, int64_t, int64_t) FASTSMC_INLINE {
    for (int p = 0; p < kParts; ++p) {
      const vdouble v = load_doubles(group + p * kLanes64);
      bad[p] |= ~(v <= kHuge);
      if (!kLog) bad[p] |= ~(v >= 0.);
      top[p] = v > top[p] ? v : top[p];
    }
  });
  for (int p = 0; p < kParts; ++p)
    if (any(bad[p])) return __builtin_nan("");
  return largest_lane(top);
}

// What is below the smallest normal number of T becomes zero: processors are slow with such numbers.
template <class T>
static inline void store_weights(T* to, vdouble w) {
  constexpr double kSmallest = sizeof(T) == sizeof(float) ? __FLT_MIN__ : __DBL_MIN__;
  store_doubles(to, w < kSmallest ? vdouble{} : w);
}

// out = f(x, p) by parts.
template <class T, class Function>
static inline void transform(const T* x, int64_t n, T* out, T filler, const Function& f) {
  for_groups(x, n, filler, [&](const T* group, int64_t i, int64_t count) FASTSMC_INLINE {
    T last[kGroup];
    T* const to = count == kGroup ? out + i : last;
    for (int p = 0; p < kParts; ++p) store_weights(to + p * kLanes64, f(load_doubles(group + p * kLanes64), p));
    if (count < kGroup) memcpy(out + i, last, static_cast<size_t>(count) * sizeof last[0]);
  });
}

// The block is in the first-level cache when it is read for the second time.
template <class T>
static ExpSums exponentials(const T* log_weights, int64_t n, T* out) {
  vdouble top[kParts], total[kParts] = {}, squares[kParts] = {};
  for (int p = 0; p < kParts; ++p) top[p] = splat<vdouble>(kNothing<double>);
  for_groups(log_weights, n, kNothing<T>, [&](const T* group, int64_t, int64_t) FASTSMC_INLINE {
    for (int p = 0; p < kParts; ++p) {
      const vdouble v = load_doubles(group + p * kLanes64);
      top[p] = v > top[p] ? v : top[p];
    }
  });
  const double largest = largest_lane(top), shift = largest == kNothing<double> ? 0 : largest;
  transform(log_weights, n, out, kNothing<T>, [&](vdouble v, int p) FASTSMC_INLINE {
    const vdouble w = exp64(v - shift);
    total[p] += w;
    squares[p] += w * w;
    return w;
  });
  return {largest, sum_lanes(total), sum_lanes(squares)};
}

template <class T>
static void scale(T* weights, int64_t n, double factor) {
  transform(weights, n, weights, T{0}, [&](vdouble w, int) FASTSMC_INLINE { return w * factor; });
}

static void exp_in_place(double* x, int64_t n) {
  transform(x, n, x, 0., [](vdouble v, int) FASTSMC_INLINE { return exp64(v); });
}

// Calls work(weights of part p, its first index, p) for all weights, as quantise takes them.
template <bool kLog, class T, class Work>
static inline void for_weights(const T* weights, int64_t n, const MassScale& scale, const Work& work) {
  const double lift = fixed::lift_of(scale.exponent) == 0 ? 1. : __builtin_ldexp(1., fixed::kLift);
  for_groups(weights, n, kLog ? kNothing<T> : T{0}, [&](const T* group, int64_t i, int64_t) FASTSMC_INLINE {
    for (int p = 0; p < kParts; ++p) {
      const vdouble v = load_doubles(group + p * kLanes64);
      // adding +0 makes a negative zero positive
      work(kLog ? exp64(v - scale.shift) : v * lift + 0., i + p * kLanes64, p);
    }
  });
}

template <class T, bool kLog>
static fixed::Sums sum_masses_of(const T* weights, int64_t n, const MassScale& scale) {
  vulong fine[kParts] = {}, coarse[kParts] = {}, invalid[kParts] = {};
  for_weights<kLog>(weights, n, scale, [&](vdouble w, int64_t, int p) FASTSMC_INLINE {
    vulong distance;
    const vulong q = fixed::quantise<VectorShift>((vulong)w, scale.exponent, distance);
    fine[p] += q;
    coarse[p] += q >> 1;
    invalid[p] |= distance | fine[p];  // a sum of masses of 62 bits shows bit 63 before it wraps
  });
  fixed::Sums sums{0, 0, true};
  for (int p = 0; p < kParts; ++p)
    for (int lane = 0; lane < kLanes64; ++lane)
      fixed::add(sums, {fine[p][lane], coarse[p][lane], (invalid[p][lane] >> 63) == 0});
  return sums;
}

template <class T>
static fixed::Sums sum_masses(const T* weights, int64_t n, MassScale scale) {
  return scale.log ? sum_masses_of<T, true>(weights, n, scale) : sum_masses_of<T, false>(weights, n, scale);
}

template <class T, bool kLog>
static void masses_of(const T* weights, int64_t n, const MassScale& scale, uint64_t* out) {
  for_weights<kLog>(weights, n, scale, [&](vdouble w, int64_t i, int) FASTSMC_INLINE {
    vulong distance;
    store(out + i, fixed::quantise<VectorShift>((vulong)w, scale.exponent, distance));
  });
}

template <class T>
static void masses(const T* weights, int64_t n, MassScale scale, uint64_t* out) {
  scale.log ? masses_of<T, true>(weights, n, scale, out) : masses_of<T, false>(weights, n, scale, out);
}

// The number of teeth below c is ceil(c M / T - R / T). Float64 tells which integer that is, except where it comes
// closer to one than its error of at most M 2^-47.
template <class T, bool kLog>
static bool comb_of(const T* weights, int64_t n, const MassScale& scale, const fixed::Share& share, uint64_t offset,
                    uint64_t start, int64_t* below) {
  constexpr double kMagic = 0x1.8p52;
  const double ratio = share.ratio * 0x1p11, margin = static_cast<double>(share.samples) * 0x1p-46;
  const double shift = static_cast<double>(offset) / static_cast<double>(share.total);
  vulong before = splat<vulong>(start);
  vlong unsure{};
  for_weights<kLog>(weights, n, scale, [&](vdouble w, int64_t i, int) FASTSMC_INLINE {
    vulong distance;
    const vulong sums = prefix_sums(fixed::quantise<VectorShift>((vulong)w, scale.exponent, distance));
    const vulong c = (before + sums) >> 11;  // below 2^52: the fraction bits of 2^52 + c
    before += last_lane(sums);
    const vdouble x = ((vdouble)(c | 0x4330000000000000u) - 0x1p52) * ratio - shift;
    const vdouble rounded = x + kMagic, excess = x - (rounded - kMagic);
    unsure |= (excess < margin) & (excess > -margin);
    store(below + i, (vlong)rounded - (vlong)splat<vdouble>(kMagic) - (excess > 0.));  // true is -1
  });
  return !any(unsure);
}

template <class T>
static bool comb(const T* weights, int64_t n, MassScale scale, const fixed::Share& share, uint64_t offset,
                 uint64_t start, int64_t* below) {
  return scale.log ? comb_of<T, true>(weights, n, scale, share, offset, start, below)
                   : comb_of<T, false>(weights, n, scale, share, offset, start, below);
}

// Every particle marks where its children would begin: the last to mark a place is the one that has children there. A
// running maximum then fills the places between, without a branch on how many children anyone has.
static void expand(int64_t ancestor, const int64_t* below, int64_t n, int64_t* out) {
  constexpr int64_t kPlaces = 4096;
  const int64_t first = below[-1], count = below[n - 1] - first;
  if (n > kPlaces || count > kPlaces) {  // long runs
    for (int64_t i = 0; i < n; ++i)
      for (int64_t at = below[i - 1]; at < below[i]; ++at) out[at] = ancestor + i;
    return;
  }
  alignas(64) int32_t place[kPlaces + kLanes];
  for (int64_t at = 0; at <= count; at += kLanes) store(place + at, vint{});
  for (int64_t i = 0; i < n; ++i) place[below[i - 1] - first] = static_cast<int32_t>(i);
  vint before{};
  for (int64_t at = 0; at < count; at += kLanes) {
    const vint filled = max(prefix_max(load<vint>(place + at)), before);
    before = last_lane(filled);
    store(place + at, filled);
  }
  out += first;
  int64_t at = 0;
  for (; at + kLanes64 <= count; at += kLanes64) store(out + at, load_longs(place + at) + ancestor);
  for (; at < count; ++at) out[at] = ancestor + place[at];
}

template <class T>
static constexpr WeightKernelsOf<T> kernels_of() {
  return {largest<T, false>, largest<T, true>, exponentials<T>, scale<T>, sum_masses<T>, masses<T>, comb<T>};
}

static const WeightKernels weight_kernels = {kernels_of<float>(), kernels_of<double>(), exp_in_place, expand};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL

#undef FASTSMC_INLINE
