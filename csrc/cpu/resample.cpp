// Every scheme says how many of its samples have an ancestor of at most i: a function of the prefix sum of
// masses at i (common/fixed_scan.h). Those cumulative counts are then written out as ancestors.
//
// Four reads of the weights (largest, coarse sum, block sums at the fine scale, emission) and one write of
// the ancestors; masses and counts live in chunks on the stack. Log weights are exponentiated again at each
// read, which costs less than a copy in float64. Blocks of weights are independent once the sums of blocks
// are known, and write separate ranges of ancestors.
#include "cpu/resample.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/fixed_scan.h"
#include "cpu/parallel.h"
#include "cpu/weights.h"

namespace fastsmc::cpu {
namespace {

constexpr int64_t kChunk = 1024;

// Weights of one row with the scale of their masses, and the mass before each block and after the last.
template <class T>
struct Masses {
  const T* weights;
  int64_t n;
  MassScale scale;
  std::vector<uint64_t> before;

  int64_t blocks() const { return (n + kWeightBlock - 1) / kWeightBlock; }
  int64_t end(int64_t block) const { return std::min(n, (block + 1) * kWeightBlock); }
  uint64_t total() const { return before.back(); }

  // Calls work(masses, how many) for a block, chunk by chunk; there is room for kChunk masses.
  template <class Work>
  void for_chunks(int64_t block, const Work& work) const {
    alignas(64) uint64_t chunk[kChunk];
    for (int64_t i = block * kWeightBlock; i < end(block); i += kChunk) {
      const int64_t count = std::min(kChunk, end(block) - i);
      weight_kernels_of<T>().masses(weights + i, count, scale, chunk);
      work(chunk, i, count);
    }
  }
};

// values[0 .. blocks] become their own exclusive prefix sums.
template <class I>
void accumulate(std::vector<I>& values) {
  I sum = 0;
  for (I& value : values) {
    const I next = sum + value;
    value = sum;
    sum = next;
  }
}

template <class T>
Masses<T> masses_of(const T* weights, bool log, double largest, int64_t n, bool parallel) {
  Masses<T> masses{weights, n, {log, largest, fixed::coarse_scale(log ? 1. : largest, n)}, {}};
  masses.before.resize(static_cast<size_t>(masses.blocks()) + 1);
  const auto sum_blocks = [&] {
    for_each(masses.blocks(), parallel, [&](int64_t b) {
      const int64_t at = b * kWeightBlock;
      masses.before[static_cast<size_t>(b)] =
          weight_kernels_of<T>().sum_masses(weights + at, masses.end(b) - at, masses.scale);
    });
    masses.before.back() = 0;
    accumulate(masses.before);
  };
  sum_blocks();
  masses.scale.exponent = fixed::fine_scale(masses.scale.exponent, masses.total(), n);
  sum_blocks();
  return masses;
}

// Each scheme below has before(block), the number of samples with ancestors in earlier blocks, and a cursor
// that starts at a block, with which count() turns the next n masses into the number of samples with
// ancestors up to each.
struct Systematic {
  fixed::Share share;
  uint64_t offset;
  const std::vector<uint64_t>& starts;

  struct Cursor {
    uint64_t mass;
  };
  Cursor cursor(int64_t block) const { return {starts[static_cast<size_t>(block)]}; }
  int64_t before(int64_t block) const {
    return fixed::positions_below(starts[static_cast<size_t>(block)], share, offset);
  }
  void count(Cursor& at, uint64_t* masses, int64_t n, int64_t* below) const {
    kernels().weights.comb(share, offset, at.mass, n, masses, below);
    at.mass = masses[n - 1];
  }
};

struct Stratified {
  fixed::Share share;
  Uniforms u;
  int64_t first_u;
  const std::vector<uint64_t>& starts;

  struct Cursor {
    uint64_t mass;
  };
  Cursor cursor(int64_t block) const { return {starts[static_cast<size_t>(block)]}; }
  int64_t before(int64_t block) const { return positions_below(starts[static_cast<size_t>(block)]); }
  int64_t positions_below(uint64_t mass) const {
    const fixed::Division d = fixed::divide(mass, share);
    return d.quotient + (d.remainder > 0 && fixed::offset(u[first_u + d.quotient], share.total) < d.remainder);
  }
  void count(Cursor& at, const uint64_t* masses, int64_t n, int64_t* below) const {
    for (int64_t i = 0; i < n; ++i) below[i] = positions_below(at.mass += masses[i]);
  }
};

// The positions of independent draws in ascending order. They are uniform numbers, so equal buckets of about
// 8 each make sorting linear; were they not, it would only be slower.
std::vector<uint64_t> sorted_offsets(Uniforms u, int64_t first, int64_t m, uint64_t total) {
  const int64_t buckets = m / 8 + 1;
  const double ratio = static_cast<double>(buckets) / (static_cast<double>(total) + 1);
  const auto bucket_of = [&](uint64_t position) {
    return std::min(static_cast<size_t>(static_cast<double>(position) * ratio), static_cast<size_t>(buckets - 1));
  };
  std::vector<uint64_t> positions(static_cast<size_t>(m)), sorted(static_cast<size_t>(m));
  std::vector<int64_t> begin(static_cast<size_t>(buckets) + 1);
  for (int64_t j = 0; j < m; ++j) {
    const uint64_t position = fixed::offset(u[first + j], total);
    positions[static_cast<size_t>(j)] = position;
    ++begin[bucket_of(position)];
  }
  accumulate(begin);
  for (const uint64_t position : positions) sorted[static_cast<size_t>(begin[bucket_of(position)]++)] = position;
  int64_t from = 0;  // each begin has become the end of its bucket
  for (int64_t b = 0; b < buckets; ++b) {
    const int64_t to = begin[static_cast<size_t>(b)];
    std::sort(sorted.begin() + from, sorted.begin() + to);
    from = to;
  }
  return sorted;
}

struct Multinomial {
  std::vector<uint64_t> positions;  // sorted
  const std::vector<uint64_t>& starts;

  struct Cursor {
    uint64_t mass;
    int64_t below;
  };
  Cursor cursor(int64_t block) const { return {starts[static_cast<size_t>(block)], before(block)}; }
  int64_t before(int64_t block) const {
    const uint64_t mass = starts[static_cast<size_t>(block)];
    return std::lower_bound(positions.begin(), positions.end(), mass) - positions.begin();
  }
  void count(Cursor& at, const uint64_t* masses, int64_t n, int64_t* below) const {
    const auto size = static_cast<int64_t>(positions.size());
    for (int64_t i = 0; i < n; ++i) {
      at.mass += masses[i];
      while (at.below < size && positions[static_cast<size_t>(at.below)] < at.mass) ++at.below;
      below[i] = at.below;
    }
  }
};

// floor(M q / T) copies of each; the remainders M q mod T are the masses of the draw. They sum to R T for R
// draws: a shift by the bit length of R brings that below T.
struct Residual {
  fixed::Share share;
  std::vector<int64_t> copies;   // before each block, and in all
  std::vector<uint64_t> starts;  // of remainders
  int shift;
  Multinomial draw;

  struct Cursor {
    int64_t copies;
    Multinomial::Cursor draw;
  };

  template <class T>
  Residual(const Masses<T>& masses, int64_t m, Uniforms u, int64_t first_u, bool parallel)
      : share(fixed::share(masses.total(), m)),
        copies(masses.before.size()),
        starts(masses.before.size()),
        draw{{}, starts} {
    const auto sum_blocks = [&](auto& sums, auto part) {
      for_each(masses.blocks(), parallel, [&](int64_t b) {
        std::decay_t<decltype(sums[0])> sum = 0;
        masses.for_chunks(b, [&](const uint64_t* chunk, int64_t, int64_t n) {
          for (int64_t i = 0; i < n; ++i) sum += part(fixed::divide(chunk[i], share));
        });
        sums[static_cast<size_t>(b)] = sum;
      });
      accumulate(sums);
    };
    sum_blocks(copies, [](fixed::Division d) { return d.quotient; });
    const int64_t drawn = m - copies.back();
    shift = fixed::bit_length(static_cast<uint64_t>(drawn));
    sum_blocks(starts, [this](fixed::Division d) { return d.remainder >> shift; });
    draw.positions = sorted_offsets(u, first_u, drawn, starts.back());
  }

  Cursor cursor(int64_t block) const { return {copies[static_cast<size_t>(block)], draw.cursor(block)}; }
  int64_t before(int64_t block) const { return copies[static_cast<size_t>(block)] + draw.before(block); }
  void count(Cursor& at, uint64_t* masses, int64_t n, int64_t* below) const {
    int64_t copied[kChunk];
    for (int64_t i = 0; i < n; ++i) {
      const fixed::Division d = fixed::divide(masses[i], share);
      copied[i] = at.copies += d.quotient;
      masses[i] = d.remainder >> shift;
    }
    draw.count(at.draw, masses, n, below);
    for (int64_t i = 0; i < n; ++i) below[i] += copied[i];
  }
};

// Writes each ancestor at its samples, from where the one before it ended. Four are stored at once, without a
// branch on how many there are: what is too much is overwritten by the next, and `limit` keeps it inside this
// block's range.
int64_t expand(int64_t ancestor, const int64_t* below, int64_t n, int64_t begin, int64_t limit, int64_t* out) {
  for (int64_t i = 0; i < n; ++i, ++ancestor) {
    const int64_t end = below[i];
    if (begin + 4 <= limit) {
      for (int64_t k = 0; k < 4; ++k) out[begin + k] = ancestor;
      begin += 4;
    }
    for (; begin < end; ++begin) out[begin] = ancestor;
    begin = end;
  }
  return begin;
}

template <class T, class SchemeOf>
void emit(const Masses<T>& masses, const SchemeOf& scheme, bool parallel, int64_t* out) {
  for_each(masses.blocks(), parallel, [&](int64_t b) {
    int64_t begin = scheme.before(b);
    const int64_t limit = scheme.before(b + 1);
    if (begin == limit) return;
    auto cursor = scheme.cursor(b);
    alignas(64) int64_t below[kChunk];
    masses.for_chunks(b, [&](uint64_t* chunk, int64_t i, int64_t n) {
      scheme.count(cursor, chunk, n, below);
      begin = expand(i, below, n, begin, limit, out);
    });
  });
}

template <class T>
void resample_row(Scheme scheme, const Masses<T>& masses, int64_t m, Uniforms u, int64_t first_u, bool parallel,
                  int64_t* out) {
  const fixed::Share share = fixed::share(masses.total(), m);
  switch (scheme) {
    case Scheme::kSystematic:
      return emit(masses, Systematic{share, fixed::offset(u[first_u], masses.total()), masses.before}, parallel, out);
    case Scheme::kStratified:
      return emit(masses, Stratified{share, u, first_u, masses.before}, parallel, out);
    case Scheme::kMultinomial:
      return emit(masses, Multinomial{sorted_offsets(u, first_u, m, masses.total()), masses.before}, parallel, out);
    case Scheme::kResidual:
      return emit(masses, Residual(masses, m, u, first_u, parallel), parallel, out);
  }
}

Status check_ancestors(const int64_t* ancestors, int64_t m, int64_t n) {
  uint64_t largest = 0;  // a negative one is larger than any
  for (int64_t j = 0; j < m; ++j) largest = std::max(largest, static_cast<uint64_t>(ancestors[j]));
  if (largest < static_cast<uint64_t>(n)) return {};
  int64_t j = 0;
  while (static_cast<uint64_t>(ancestors[j]) < static_cast<uint64_t>(n)) ++j;
  return {Fault::kAncestor, j};
}

Status offspring_row(int64_t m, int64_t n, const int64_t* ancestors, int64_t* counts) {
  if (const Status status = check_ancestors(ancestors, m, n)) return status;
  std::fill_n(counts, n, 0);
  for (int64_t j = 0; j < m; ++j) ++counts[ancestors[j]];
  return {};
}

}  // namespace

template <class T>
Status resample(Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights, Uniforms u,
                int64_t* ancestors) {
  const int64_t numbers = scheme == Scheme::kSystematic ? 1 : m;
  return for_each_row(rows, std::max(n, m), [&](int64_t row, bool parallel) -> Status {
    const T* values = weights + row * n;
    int64_t* out = ancestors + row * m;
    double largest;
    if (Status status = largest_weight(values, n, log, parallel, &largest)) {
      status.position += row * n;
      return status;
    }
    for (int64_t j = row * numbers; j < (row + 1) * numbers; ++j)
      if (!(u[j] >= 0 && u[j] < 1)) return {Fault::kUniform, j};
    resample_row(scheme, masses_of(values, log, largest, n, parallel), m, u, row * numbers, parallel, out);
    return {};
  });
}

template Status resample(Scheme, bool, int64_t, int64_t, int64_t, const float*, Uniforms, int64_t*);
template Status resample(Scheme, bool, int64_t, int64_t, int64_t, const double*, Uniforms, int64_t*);

Status offspring(int64_t rows, int64_t m, int64_t n, const int64_t* ancestors, int64_t* counts) {
  return for_each_row(rows, std::max(m, n), [&](int64_t row, bool) {
    Status status = offspring_row(m, n, ancestors + row * m, counts + row * n);
    status.position += row * m;
    return status;
  });
}

Status permute_ancestors(int64_t rows, int64_t n, const int64_t* ancestors, int64_t* permuted) {
  return for_each_row(rows, n, [&](int64_t row, bool) {
    std::vector<int64_t> counts(static_cast<size_t>(n));
    Status status = offspring_row(n, n, ancestors + row * n, counts.data());
    status.position += row * n;
    if (status) return status;
    int64_t* out = permuted + row * n;
    size_t parent = 0;  // of the next surplus child
    for (int64_t i = 0; i < n; ++i) {
      out[i] = i;
      if (counts[static_cast<size_t>(i)] > 0) continue;
      while (counts[parent] < 2) ++parent;
      --counts[parent];
      out[i] = static_cast<int64_t>(parent);
    }
    return status;
  });
}

Status gather_particles(int64_t n, int64_t m, size_t row_bytes, const void* particles, const int64_t* ancestors,
                        void* out) {
  if (const Status status = check_ancestors(ancestors, m, n)) return status;
  const auto* from = static_cast<const char*>(particles);
  auto* to = static_cast<char*>(out);
  const bool in_place = from == to;
  if (in_place) {
    if (n != m) return {Fault::kNotSquare, 0};
    for (int64_t i = 0; i < n; ++i)
      if (ancestors[ancestors[i]] != ancestors[i]) return {Fault::kNotPermuted, i};
  } else if (from < to + static_cast<size_t>(m) * row_bytes && to < from + static_cast<size_t>(n) * row_bytes) {
    return {Fault::kOverlap, 0};
  }
  const int64_t rows = std::max<int64_t>(1, int64_t{1 << 16} / static_cast<int64_t>(row_bytes + 1));  // of a block
  for_each((m + rows - 1) / rows, true, [&](int64_t b) {
    for (int64_t i = b * rows; i < std::min(m, (b + 1) * rows); ++i)
      if (!in_place || ancestors[i] != i)
        memcpy(to + static_cast<size_t>(i) * row_bytes, from + static_cast<size_t>(ancestors[i]) * row_bytes,
               row_bytes);
  });
  return {};
}

}  // namespace fastsmc::cpu
