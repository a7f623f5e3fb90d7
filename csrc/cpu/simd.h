// Vectors of one instruction-set level, as GCC's vector types and shuffles: one source for all levels.
//
// Included only by level_*.cpp, which define FASTSMC_LEVEL (a namespace of its own, so that no function
// compiled for one level is ever linked into another) and FASTSMC_VECTOR_BYTES. Nothing here may instantiate
// a library template.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Vectors of 64 bytes are compiled without AVX-512 too (FASTSMC_EMULATE), to test them where it is missing.
#if FASTSMC_VECTOR_BYTES == 64 && defined(__AVX512F__)
#define FASTSMC_USE_AVX512 1
#elif FASTSMC_VECTOR_BYTES == 32
#define FASTSMC_USE_AVX2 1
#endif

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int kVectorBytes = FASTSMC_VECTOR_BYTES;
constexpr int kLanes = kVectorBytes / 4;    // float32
constexpr int kLanes64 = kVectorBytes / 8;  // float64

typedef float vfloat __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));
typedef int64_t vlong __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));
typedef uint64_t vulong __attribute__((vector_size(FASTSMC_VECTOR_BYTES)));

template <class V, class T>
static inline V load(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
static inline void store(T* to, V v) {
  memcpy(to, &v, sizeof v);
}

static inline vint lane_numbers() {
  vint v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Up to kLanes numbers that are `stride` apart, zeros after them.
static inline vfloat load_row(const float* from, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) return load<vfloat>(from);
#if FASTSMC_USE_AVX512
  if (stride == 1) return (vfloat)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif FASTSMC_USE_AVX2
  if (stride == 1) return (vfloat)_mm256_maskload_ps(from, (__m256i)(lane_numbers() < static_cast<int32_t>(count)));
#endif
  vfloat v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i * stride];
  return v;
}

template <class V, class T>
static inline V splat(T value) {
  return value - V{};  // x - 0 is x, so this is a bare broadcast; 0 + x is not, for x = -0
}

// Always inline: GCC 12 gives back the stack of an argument that is wider than a register only when the caller returns.
__attribute__((always_inline)) static inline vfloat fma(vfloat a, vfloat b, vfloat c) {
#if FASTSMC_USE_AVX512
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTSMC_USE_AVX2
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif FASTSMC_VECTOR_BYTES == 64 && defined(__FMA__)  // emulated: fused as it is with AVX-512
  const auto *x = reinterpret_cast<const __m256*>(&a), *y = reinterpret_cast<const __m256*>(&b);
  auto* z = reinterpret_cast<__m256*>(&c);
  for (int half = 0; half < 2; ++half) z[half] = _mm256_fmadd_ps(x[half], y[half], z[half]);
  return c;
#else
  return a * b + c;
#endif
}

// The factor one, of which no multiplication is left.
struct One {};
static inline vfloat operator*(One, vfloat v) {
  return v;
}

template <class V>
static inline V max(V a, V b) {
  return a > b ? a : b;
}
static inline vfloat min(vfloat a, vfloat b) {
  return a < b ? a : b;
}
static inline vfloat to_float(vint v) {
  return __builtin_convertvector(v, vfloat);
}

static inline vfloat sqrt(vfloat a) {
#if FASTSMC_USE_AVX512
  return (vfloat)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)a);
#elif FASTSMC_USE_AVX2
  return (vfloat)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// A square of 32-bit numbers: rows become columns, by swapping off-diagonal blocks of 1, 2, 4 ... lanes. Step is a
// constant, for a shuffle by lanes that the compiler does not know is three look-ups.
template <class V, int Step = 1>
__attribute__((always_inline)) static inline void transpose(V rows[kLanes]) {
  if constexpr (Step < kLanes) {
    vint low, high;  // lanes of the first operand, then of the second
    for (int j = 0; j < kLanes; ++j) {
      low[j] = (j & Step) ? kLanes + j - Step : j;
      high[j] = (j & Step) ? kLanes + j : j + Step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & Step) continue;
      const V a = rows[i], b = rows[i + Step];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + Step] = __builtin_shuffle(a, b, high);
    }
    transpose<V, 2 * Step>(rows);
  }
}

// Whether a comparison holds in any lane.
template <class Mask>
static inline bool any(Mask mask) {
#if FASTSMC_USE_AVX512
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif FASTSMC_USE_AVX2
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  uint64_t word[kVectorBytes / 8], bits = 0;
  memcpy(word, &mask, sizeof word);
  for (uint64_t part : word) bits |= part;
  return bits != 0;
#endif
}

static inline void add_to(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load<vfloat>(to + i) + load<vfloat>(from + i));
  for (; i < count; ++i) to[i] += from[i];
}

// Lanes in order, in float64: the same sum whatever the compiler makes of it.
static inline double sum_lanes(vfloat v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(v[i]);
  return sum;
}

// The first half of the lanes plus the second, in float64.
static inline vdouble halves_added(vfloat v) {
  typedef float Half __attribute__((vector_size(FASTSMC_VECTOR_BYTES / 2)));
  Half half[2];
  memcpy(half, &v, sizeof v);
  return __builtin_convertvector(half[0], vdouble) + __builtin_convertvector(half[1], vdouble);
}

// The sum of the lanes in float32, those first that are half of them apart.
template <int Step = kLanes / 2>
__attribute__((always_inline)) static inline float sum_of(vfloat v) {
  if constexpr (Step > 0) {
    vint other;
    for (int i = 0; i < kLanes; ++i) other[i] = i ^ Step;
    return sum_of<Step / 2>(v + __builtin_shuffle(v, other));
  } else {
    return v[0];
  }
}

// The 64-bit product of each lane with one multiplier, as its two halves.
static inline void multiply_wide(vuint a, uint32_t multiplier, vuint& high, vuint& low) {
#if FASTSMC_USE_AVX512  // the maskz forms: GCC 12 warns of its own undefined operand in the others
  const __m512i m = _mm512_set1_epi32(static_cast<int>(multiplier)), v = (__m512i)a;
  const __m512i even = _mm512_maskz_mul_epu32(0xFF, v, m),
                odd = _mm512_maskz_mul_epu32(0xFF, _mm512_maskz_srli_epi64(0xFF, v, 32), m);
  high = (vuint)_mm512_mask_blend_epi32(0xAAAA, _mm512_maskz_srli_epi64(0xFF, even, 32), odd);
  low = (vuint)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_maskz_slli_epi64(0xFF, odd, 32));
#elif FASTSMC_USE_AVX2
  const __m256i m = _mm256_set1_epi32(static_cast<int>(multiplier)), v = (__m256i)a;
  const __m256i even = _mm256_mul_epu32(v, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
  high = (vuint)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  low = (vuint)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * multiplier;
    high[i] = static_cast<uint32_t>(product >> 32);
    low[i] = static_cast<uint32_t>(product);
  }
#endif
}

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
