// A convolution of one particle, its activation and its max-pool, over a tile of samples. Samples are vector lanes and
// images are [channel][y][x][w], so that shifting an image is moving a pointer and nothing is unfolded:
//
//   forward          z[oc, pixel]   = b + sum over terms of W[oc, term] h[pixel + term]      by the micro-kernel
//   input gradient   dh[ic, pixel]  = sum over oc, taps of W[oc, ic, tap] dz[pixel - tap]    by the micro-kernel
//   weight gradient  dW[oc, term]  += sum over pixels, samples of dz[oc, pixel] h[pixel + term]
//
// A term is an input channel and a tap (y, x) of the filter. At the border the loops over taps are shorter; what
// pooling drops is never computed. The last sum runs over lanes too: its accumulators are vectors, of which a register
// tile takes a piece of a row of pixels at a time, and which are added up across at the tile's end.
//
// Memory traffic: the pixels of one pooled value are computed side by side and pooled in L1, so that only pooled
// outputs are written, and for the backward pass the slope at the maximum and its place in a byte. That pass expands a
// panel of delta to dz (a band of rows where no input gradient is wanted), which stays in L2.
#pragma once

#include "cpu/activation_kernel.h"
#include "cpu/dense_kernel.h"
#include "cpu/micro_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

typedef uint8_t vbyte __attribute__((vector_size(kLanes)));

// One number per byte; the compiler's own conversions go lane by lane.
static inline vint load_bytes(const uint8_t* from) {
  const vbyte bytes = load<vbyte>(from);
#if FASTSMC_USE_AVX512
  return (vint)_mm512_maskz_cvtepu8_epi32(0xFFFF, (__m128i)bytes);
#elif FASTSMC_USE_AVX2
  return (vint)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
#else
  return __builtin_convertvector(bytes, vint);
#endif
}

static inline void store_bytes(uint8_t* to, vint numbers) {
#if FASTSMC_USE_AVX512
  store(to, _mm512_maskz_cvtepi32_epi8(0xFFFF, (__m512i)numbers));
#else
  store(to, __builtin_convertvector(numbers, vbyte));
#endif
}

#if FASTSMC_VECTOR_BYTES == 64
constexpr int kFilterRows = 6, kFilterTerms = 4;  // 24 accumulators, 4 of h, one of dz, of 32 registers
#else
constexpr int kFilterRows = 4, kFilterTerms = 3;  // 12 + 3 + 1 of 16
#endif
constexpr int64_t kFilterBytes = 24 << 10;  // of dz, which stay in L1 while all terms pass

// sum[r][t] += sum over i < count of a[r * a_row + i] b[t][i], vectors all.
struct Correlation {
  int64_t count;
  const float* a;
  int64_t a_row;
  const float* b[kFilterTerms];
  float* sum;
  int64_t sum_row;
};

template <int Rows, int Terms>
static void correlate(const Correlation& p) {
  vfloat sum[Rows][Terms] = {};
  const float* b[Terms];
  for (int t = 0; t < Terms; ++t) b[t] = p.b[t];
  const float* a = p.a;
  const int64_t a_row = p.a_row;
  for (int64_t i = 0; i < p.count * kLanes; i += kLanes) {
    vfloat term[Terms];
#pragma GCC unroll 4
    for (int t = 0; t < Terms; ++t) term[t] = load<vfloat>(b[t] + i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const vfloat row = load<vfloat>(a + r * a_row + i);
#pragma GCC unroll 4
      for (int t = 0; t < Terms; ++t) sum[r][t] = fma(row, term[t], sum[r][t]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < Terms; ++t) {
      float* total = p.sum + r * p.sum_row + t * kLanes;
      store(total, load<vfloat>(total) + sum[r][t]);
    }
}

using CorrelateKernel = void (*)(const Correlation&);

template <int Rows>
constexpr CorrelateKernel kCorrelateByTerms[] = {
    correlate<Rows, 1>,
    correlate<Rows, 2>,
    correlate<Rows, 3>,
#if FASTSMC_VECTOR_BYTES == 64
    correlate<Rows, 4>,
#endif
};

constexpr const CorrelateKernel* kCorrelate[] = {
    kCorrelateByTerms<1>, kCorrelateByTerms<2>, kCorrelateByTerms<3>, kCorrelateByTerms<4>,
#if FASTSMC_VECTOR_BYTES == 64
    kCorrelateByTerms<5>, kCorrelateByTerms<6>,
#endif
};

// The sums of the lanes of each of `count` vectors, added to `to`.
static void add_lane_sums(const float* vectors, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    vfloat square[kLanes], sum{};
    for (int64_t k = 0; k < kLanes; ++k)
      square[k] = i + k < count ? load<vfloat>(vectors + (i + k) * kLanes) : vfloat{};
    transpose(square);
    for (int k = 0; k < kLanes; ++k) sum += square[k];
    for (int64_t k = 0; k < kLanes && i + k < count; ++k) to[i + k] += sum[k];
  }
}

// Those taps of a filter whose place first + tap lies in [0, size).
struct Taps {
  int64_t begin, count;

  Taps(int64_t first, int64_t size, int64_t kernel) : begin(first < 0 ? -first : 0) {
    const int64_t end = size - first < kernel ? size - first : kernel;
    count = end > begin ? end - begin : 0;
  }
  bool operator!=(const Taps& other) const { return begin != other.begin || count != other.count; }
};

// The terms of one channel: those taps of a filter that lie on the image when it stands at a pixel. They are the same
// for all pixels away from the border.
class TapList {
 public:
  // Steps of a and b from tap to tap in x and y; filters are kernel x kernel, images height x width.
  TapList(int64_t kernel, int64_t height, int64_t width, Term steps_x, Term steps_y, float* memory)
      : kernel_(kernel),
        height_(height),
        width_(width),
        x_(steps_x),
        y_(steps_y),
        terms_(reinterpret_cast<Term*>(memory)) {}
  static int64_t memory(int64_t kernel) { return round_up_lanes(kernel * kernel * 2); }

  // The product with the filter's first tap at (y, x) of an image.
  void stand(int64_t y, int64_t x, const float* image, ImageProduct& p) {
    const Taps taps_y(y, height_, kernel_), taps_x(x, width_, kernel_);
    if (taps_y != now_y_ || taps_x != now_x_) list(now_y_ = taps_y, now_x_ = taps_x);
    p.depth = taps_y.count * taps_x.count;
    p.terms = terms_;
    p.b = p.next = image + y * y_.b + x * x_.b;
  }

 private:
  void list(Taps taps_y, Taps taps_x) {
    Term* to = terms_;
    for (int64_t y = taps_y.begin; y < taps_y.begin + taps_y.count; ++y)
      for (int64_t x = taps_x.begin; x < taps_x.begin + taps_x.count; ++x)
        *to++ = {static_cast<int32_t>(y * y_.a + x * x_.a), static_cast<int32_t>(y * y_.b + x * x_.b)};
  }

  int64_t kernel_, height_, width_;
  Term x_, y_;
  Term* terms_;
  Taps now_y_{0, 0, 0}, now_x_{0, 0, 0};
};

// What an activation that never falls does can be done after the maximum.
static inline bool rises(Activation activation) {
  return activation == Activation::kIdentity || activation == Activation::kRelu || activation == Activation::kTanh;
}

struct Convolution {
  // The part of the output that pooling reads.
  static int64_t rows(const Layer& layer) { return layer.height() / layer.pool * layer.pool; }
  static int64_t columns_of(const Layer& layer) { return layer.width() / layer.pool * layer.pool; }

  static int64_t memory(const Layer& layer, int64_t samples) {
    return (layer.outputs() + (layer.outputs() + 3) / 4) * samples;  // slopes, and places in bytes
  }
  static int64_t work(const Layer& layer, int64_t samples, bool with_below) {
    const int64_t width = samples < kPanel ? samples : kPanel, block = layer.pool * layer.pool * layer.out_channels;
    const Backward parts(layer, width, with_below);
    const int64_t ahead = TapList::memory(layer.kernel) + 2 * block * width;
    return parts.total > ahead ? parts.total : ahead;
  }

  static void forward(const Layer& layer, const float* params, const float* h, int columns, float* z, float* memory,
                      float* work) {
    const int64_t height = rows(layer) / layer.pool, width = columns_of(layer) / layer.pool, w = columns * kLanes;
    const int64_t out = layer.out_channels, size = layer.pool * layer.pool;
    float *block = work + TapList::memory(layer.kernel), *slope = nullptr;
    uint8_t* place = nullptr;
    const bool active = layer.activation != Activation::kIdentity, after = rises(layer.activation);
    if (memory != nullptr) {
      place = reinterpret_cast<uint8_t*>(memory + layer.outputs() * w);
      if (active && !after) slope = block + size * out * w;
    }
    const int64_t row = layer.in_width * w, k = layer.kernel, terms = layer.terms();
    TapList taps(k, layer.in_height, layer.in_width, {1, static_cast<int32_t>(w)},
                 {static_cast<int32_t>(k), static_cast<int32_t>(row)}, work);
    const Product one{0, params, terms, 1, h, w, block, w, columns, params + out * terms, h, 0};
    const ImageProduct pixel{{one, layer.in_channels, k * k, layer.in_height * row}, nullptr};
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        ImageProduct p = pixel;
        for (int64_t i = 0; i < layer.pool; ++i)
          for (int64_t j = 0; j < layer.pool; ++j, p.c += out * w) {
            taps.stand(y * layer.pool + i - layer.padding, x * layer.pool + j - layer.padding, h, p);
            multiply_images<Init::kRowBias>(p, out);
          }
        if (!after) activate(layer.activation, block, slope, size * out * w);
        for (int64_t c = 0; c < out; ++c) {
          const int64_t to = ((c * height + y) * width + x) * w;
          (layer.pool == 2 ? maxima<4> : maxima<0>)(block + c * w, slope != nullptr ? slope + c * w : nullptr, size,
                                                    out * w, columns, z + to, memory != nullptr ? memory + to : nullptr,
                                                    place != nullptr ? place + to : nullptr);
        }
      }
      if (!active || !after) continue;
      for (int64_t c = 0; c < out; ++c) {
        const int64_t to = (c * height + y) * width * w;
        activate(layer.activation, z + to, memory != nullptr ? memory + to : nullptr, width * w);
      }
    }
  }

  static void backward(const Layer& layer, const float* params, Panels tile, const float* h, Rows, float* delta,
                       const float* memory, float* grad, float* below, float* work) {
    const int64_t terms = layer.terms(), out = layer.out_channels, inputs = layer.inputs(), outputs = layer.outputs();
    const int64_t height = rows(layer) / layer.pool;
    const Backward parts(layer, tile.samples < kPanel ? tile.samples : kPanel, below != nullptr);
    float *sums = work, *bias_sums = sums + out * terms * kLanes;
    memset(sums, 0, static_cast<size_t>(out * (terms + 1) * kLanes) * sizeof(float));
    for (int64_t p = 0; p < tile.count(); ++p) {
      const int columns = tile.columns(p);
      const int64_t first = p * kPanel, w = columns * kLanes;
      const float* image = h + first * inputs;
      if (layer.padding > 0) image = pad(layer, image, w, work + parts.image);
      term_offsets(layer, w, work + parts.offsets);
      float* dz = work + parts.dz;
      for (int64_t y = 0; y < height; y += parts.band) {
        (layer.pool == 2 ? expand<2> : expand<0>)(layer, delta + first * outputs,
                                                  memory + Convolution::memory(layer, first), columns, y, parts.band,
                                                  dz, bias_sums);
        add_weight_sums(layer, dz, image, work + parts.offsets, columns, y * layer.pool, parts.band * layer.pool, sums);
      }
      if (below != nullptr) input_gradient(layer, params, dz, columns, below + first * inputs, work + parts.taps);
    }
    add_lane_sums(sums, out * (terms + 1), grad);
  }

 private:
  // Where the parts of the work lie, for panels of w samples.
  struct Backward {
    int64_t band;  // pooled rows that are expanded at a time
    int64_t offsets, taps, image, dz, total;

    Backward(const Layer& layer, int64_t w, bool with_below) : band(with_below ? rows(layer) / layer.pool : 1) {
      const int64_t height = layer.in_height + 2 * layer.padding, width = layer.in_width + 2 * layer.padding;
      offsets = layer.out_channels * (layer.terms() + 1) * kLanes;  // behind the sums of the gradient
      taps = offsets + round_up_lanes(layer.terms());
      image = taps + TapList::memory(layer.kernel);
      dz = image + (layer.padding > 0 ? layer.in_channels * height * width * w : 0);
      total = dz + layer.out_channels * band * layer.pool * columns_of(layer) * w;
    }
  };

  // About kDepth terms at a time.
  template <Init Start>
  static void multiply_images(ImageProduct p, int64_t count) {
    const int64_t images = p.images, wanted = (images * p.depth + kDepth / 2) / kDepth;
    if (wanted <= 1) return multiply_rows<Start>(p, count);
    const int64_t blocks = wanted < images ? wanted : images;
    for (int64_t i = 0, done = 0; i < blocks; ++i, done += p.images) {
      p.images = (images - done) / (blocks - i);
      i == 0 ? multiply_rows<Start>(p, count) : multiply_rows<Init::kAccumulate>(p, count);
      p.a += p.images * p.a_image;
      p.b += p.images * p.b_image;
      p.next = p.b;
    }
  }

  // The largest of `size` rows that are `step` apart, as torch finds it: the first of equals, and NaN above all.
  template <int Size>
  static void maxima(const float* z, const float* slope, int64_t any_size, int64_t step, int columns, float* to,
                     float* slope_to, uint8_t* place_to) {
    const int64_t size = Size > 0 ? Size : any_size;
    for (int64_t v = 0; v < columns * kLanes; v += kLanes) {
      vfloat best = load<vfloat>(z + v), steep = slope != nullptr ? load<vfloat>(slope + v) : vfloat{};
      vint place{};
      for (int64_t i = 1; i < size; ++i) {
        const vfloat value = load<vfloat>(z + i * step + v);
        const vint larger = (value > best) | (value != value);
        best = larger ? value : best;
        place = larger ? static_cast<int32_t>(i) + vint{} : place;
        if (slope != nullptr) steep = larger ? load<vfloat>(slope + i * step + v) : steep;
      }
      store(to + v, best);
      if (slope != nullptr) store(slope_to + v, steep);
      if (place_to != nullptr) store_bytes(place_to + v, place);
    }
  }

  // The image with zeros around it.
  static const float* pad(const Layer& layer, const float* h, int64_t w, float* to) {
    const int64_t border = layer.padding * w, row = layer.in_width * w, wide = row + 2 * border;
    const auto zero = [&](float* from, int64_t count) { memset(from, 0, static_cast<size_t>(count) * sizeof(float)); };
    float* at = to;
    for (int64_t c = 0; c < layer.in_channels; ++c) {
      zero(at, layer.padding * wide);
      at += layer.padding * wide;
      for (int64_t y = 0; y < layer.in_height; ++y, at += wide, h += row) {
        zero(at, border);
        memcpy(at + border, h, static_cast<size_t>(row) * sizeof(float));
        zero(at + border + row, border);
      }
      zero(at, layer.padding * wide);
      at += layer.padding * wide;
    }
    return to;
  }

  // Where each term's image starts in the padded one, int32.
  static void term_offsets(const Layer& layer, int64_t w, float* to) {
    const int64_t height = layer.in_height + 2 * layer.padding, width = layer.in_width + 2 * layer.padding;
    for (int64_t c = 0; c < layer.in_channels; ++c)
      for (int64_t y = 0; y < layer.kernel; ++y)
        for (int64_t x = 0; x < layer.kernel; ++x)
          store(to++, static_cast<int32_t>(((c * height + y) * width + x) * w));
  }

  // Pooled rows [first, first + count) of delta to dz [out_channels][rows][columns][w], whose sums are the gradient of
  // the bias.
  template <int Pool>
  static void expand(const Layer& layer, const float* delta, const float* memory, int columns, int64_t first,
                     int64_t count, float* dz, float* bias_sums) {
    const int64_t height = rows(layer) / layer.pool, width = columns_of(layer) / layer.pool, w = columns * kLanes;
    const int64_t pool = Pool > 0 ? Pool : layer.pool, row = width * pool * w;
    const auto* places = reinterpret_cast<const uint8_t*>(memory + layer.outputs() * w);
    const bool active = layer.activation != Activation::kIdentity;
    for (int64_t c = 0; c < layer.out_channels; ++c) {
      vfloat total{};
      for (int64_t y = 0; y < count; ++y) {
        const int64_t from = (c * height + first + y) * width * w;
        float* to = dz + (c * count + y) * pool * row;
        vfloat sum{};
        for (int64_t x = 0; x < width; ++x)
          for (int64_t v = 0; v < w; v += kLanes) {
            const int64_t at = from + x * w + v;
            vfloat value = load<vfloat>(delta + at);
            if (active) value *= load<vfloat>(memory + at);
            sum += value;
            const vint place = load_bytes(places + at);
            float* pixel = to + x * pool * w + v;
            int32_t here = 0;
            for (int64_t i = 0; i < pool; ++i, pixel += row)
              for (int64_t j = 0; j < pool; ++j, ++here) store(pixel + j * w, place == here ? value : vfloat{});
          }
        total += sum;
      }
      store(bias_sums + c * kLanes, load<vfloat>(bias_sums + c * kLanes) + total);
    }
  }

  // Rows [first, first + count) of the output: dz [out_channels][count][columns][w].
  static void add_weight_sums(const Layer& layer, const float* dz, const float* image, const float* offsets,
                              int columns, int64_t first, int64_t count, float* sums) {
    const int64_t out = layer.out_channels, terms = layer.terms(), w = columns * kLanes, width = columns_of(layer);
    const int64_t groups = (out + kFilterRows - 1) / kFilterRows;
    for (int64_t g = 0, c = 0, size = 0; g < groups; ++g, c += size) {
      size = (out - c) / (groups - g);
      const int64_t most = kFilterBytes / (size * w * static_cast<int64_t>(sizeof(float)));
      const int64_t pieces = (width + most - 1) / most;
      for (int64_t y = 0; y < count; ++y)
        for (int64_t piece = 0, x = 0, pixels = 0; piece < pieces; ++piece, x += pixels) {
          pixels = (width - x) / (pieces - piece);
          const float* from = image + ((first + y) * (layer.in_width + 2 * layer.padding) + x) * w;
          Correlation p{pixels * columns,          dz + ((c * count + y) * width + x) * w,
                        count * width * w,         {},
                        sums + c * terms * kLanes, terms * kLanes};
          for (int64_t t = 0; t < terms; t += kFilterTerms, p.sum += kFilterTerms * kLanes) {
            const int64_t now = terms - t < kFilterTerms ? terms - t : kFilterTerms;
            for (int64_t k = 0; k < now; ++k) p.b[k] = from + load<int32_t>(offsets + t + k);
            kCorrelate[size - 1][now - 1](p);
          }
        }
    }
  }

  // dz [out_channels][rows][columns][w] to the gradient of h: tap t of pixel y is at y + padding - t, so that counted
  // from the last tap it is a convolution.
  static void input_gradient(const Layer& layer, const float* params, const float* dz, int columns, float* below,
                             float* work) {
    const int64_t k = layer.kernel, w = columns * kLanes, height = rows(layer), row = columns_of(layer) * w;
    const int64_t image = layer.in_height * layer.in_width * w, border = k - 1 - layer.padding;
    TapList taps(k, height, columns_of(layer), {-1, static_cast<int32_t>(w)},
                 {static_cast<int32_t>(-k), static_cast<int32_t>(row)}, work);
    const Product one{0, params + k * k - 1, k * k, 1, dz, w, below, image, columns, nullptr, dz, 0};
    ImageProduct p{{one, layer.out_channels, layer.terms(), height * row}, nullptr};
    for (int64_t y = 0; y < layer.in_height; ++y)
      for (int64_t x = 0; x < layer.in_width; ++x, below += w) {
        taps.stand(y - border, x - border, dz, p);
        p.c = below;
        multiply_images<Init::kZero>(p, layer.in_channels);
      }
  }
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
