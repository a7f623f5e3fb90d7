// Every scheme says how many of its samples have an ancestor of at most i: a function of the prefix sum of masses at i
// (common/fixed_scan.h). Those cumulative counts are then written out as ancestors.
//
// Two reads of the weights (sums of blocks at a guessed scale, emission), after one of log weights for the largest, and
// one write of the ancestors; masses and counts live on the stack, block by block. A wrong guess costs another read or
// two. Log weights are exponentiated again at each read, which costs less than a copy in float64. Blocks of weights are
// independent once the sums of blocks are known, and write separate ranges of ancestors.
#include "cpu/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/fixed_scan.h"
#include "cpu/parallel.h"
#include "cpu/weights.h"

namespace fastsmc::cpu {
namespace {

constexpr int64_t kGroup = 8;          // of weights, as the kernels take them
constexpr int64_t kSampleGroups = 64;  // that tell the scale
constexpr int64_t kSortBucket = 2048;  // numbers

// values become their own exclusive prefix sums.
template <class I>
void accumulate(std::vector<I>& values) {
  I sum = 0;
  for (I& value : values) {
    const I next = sum + value;
    value = sum;
    sum = next;
  }
}

// Weights of one row with the scale of their masses, and the mass before each block and after the last.
template <class T>
struct Masses {
  const T* weights;
  int64_t n;
  MassScale scale;
  std::vector<uint64_t> before;

  int64_t blocks() const { return blocks_of(n); }
  int64_t size(int64_t block) const { return size_of_block(n, block); }
  const T* at(int64_t block) const { return weights + block * kWeightBlock; }
  uint64_t mass_before(int64_t block) const { return before[static_cast<size_t>(block)]; }
  uint64_t total() const { return before.back(); }

  // out has room for kWeightBlock.
  void read(int64_t block, uint64_t* out) const { weight_kernels_of<T>().masses(at(block), size(block), scale, out); }

  // Calls work(i, inclusive prefix sum of masses at i) for the weights of a block.
  template <class Work>
  void for_sums(int64_t block, const Work& work) const {
    alignas(64) uint64_t masses[kWeightBlock];
    read(block, masses);
    uint64_t sum = mass_before(block);
    for (int64_t i = 0; i < size(block); ++i) work(i, sum += masses[i]);
  }
};

// The sum of the weights as a few of them tell it, spread evenly in groups that share a cache line.
template <class T>
double guessed_sum(const T* weights, int64_t n, const MassScale& scale) {
  double sample[kSampleGroups * kGroup];
  int64_t count = 0;
  if (n <= kSampleGroups * kGroup)
    while (count < n) sample[count] = weights[count], ++count;
  else
    for (int64_t group = 0; group < kSampleGroups; ++group)
      for (int64_t i = group * (n - kGroup) / (kSampleGroups - 1), k = 0; k < kGroup; ++k)
        sample[count++] = weights[i + k];
  if (scale.log) {
    for (int64_t k = 0; k < count; ++k) sample[k] -= scale.shift;
    kernels().weights.exp(sample, count);
  }
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += sample[k];
  return sum * (static_cast<double>(n) / static_cast<double>(count));
}

// The largest weight, or what is wrong with the weights; and a scale at which no sum of them is too large.
template <class T>
Status find_safe_scale(Masses<T>& masses, bool parallel) {
  double largest = 1;  // exponential
  if (!masses.scale.log)
    if (const Status status = largest_weight(masses.weights, masses.n, false, parallel, &largest)) return status;
  masses.scale.exponent = fixed::safe_scale(largest, masses.n);
  return {};
}

// Finds the scale of the masses, and sums them block by block.
template <class T>
Status measure(Masses<T>& masses, bool parallel) {
  MassScale& scale = masses.scale;
  if (scale.log)
    if (const Status status = largest_weight(masses.weights, masses.n, true, parallel, &scale.shift)) return status;
  const double guess = guessed_sum(masses.weights, masses.n, scale);
  bool safe = !(guess > 0 && guess <= std::numeric_limits<double>::max());
  if (!safe)
    scale.exponent = fixed::kSafeBits - std::ilogb(guess);
  else if (const Status status = find_safe_scale(masses, parallel))
    return status;
  std::vector<fixed::Sums> blocks(static_cast<size_t>(masses.blocks()));
  for (;;) {
    for_each(masses.blocks(), parallel, [&](int64_t b) {
      blocks[static_cast<size_t>(b)] = weight_kernels_of<T>().sum_masses(masses.at(b), masses.size(b), scale);
    });
    fixed::Sums sums{0, 0, true};
    for (const fixed::Sums& block : blocks) fixed::add(sums, block);
    const int tried = scale.exponent;
    if (fixed::settle(sums, scale.exponent)) {
      masses.before.reserve(blocks.size() + 1);
      for (const fixed::Sums& block : blocks)
        masses.before.push_back(scale.exponent == tried ? block.fine : block.coarse);
      masses.before.push_back(0);
      accumulate(masses.before);
      return {};
    }
    if (safe || (sums.valid && sums.fine >= static_cast<uint64_t>(masses.n))) {
      scale.exponent = fixed::refined_scale(sums, tried, masses.n);
    } else {  // the guess was far off, or some entry is no weight
      if (const Status status = find_safe_scale(masses, parallel)) return status;
      safe = true;
    }
  }
}

// Each scheme below has before(block), the number of samples with ancestors in earlier blocks, and count(), which
// writes the number of samples with ancestors up to each weight of a block after those before it, at below[-1].
template <class T>
struct Systematic {
  const Masses<T>& masses;
  fixed::Share share;
  uint64_t offset;

  int64_t before(int64_t block) const { return fixed::positions_below(masses.mass_before(block), share, offset); }
  void count(int64_t block, int64_t* below) const {
    if (!weight_kernels_of<T>().comb(masses.at(block), masses.size(block), masses.scale, share, offset,
                                     masses.mass_before(block), below))
      masses.for_sums(block, [&](int64_t i, uint64_t c) { below[i] = fixed::positions_below(c, share, offset); });
  }
};

template <class T>
struct Stratified {
  const Masses<T>& masses;
  fixed::Share share;
  Uniforms u;

  int64_t before(int64_t block) const { return positions_below(masses.mass_before(block)); }
  int64_t positions_below(uint64_t c) const {
    const fixed::Division d = fixed::divide(c, share);
    return d.quotient + (d.remainder > 0 && fixed::offset(u.bits(d.quotient), share.total) < d.remainder);
  }
  void count(int64_t block, int64_t* below) const {
    masses.for_sums(block, [&](int64_t i, uint64_t c) { below[i] = positions_below(c); });
  }
};

void sort_few(uint64_t* x, int64_t n) {
  constexpr int64_t kFew = 16;  // so many are quickest to insert one by one
  if (n > kFew) return std::sort(x, x + n);
  for (int64_t i = 1; i < n; ++i) {
    const uint64_t value = x[i];
    int64_t at = i;
    for (; at > 0 && x[at - 1] > value; --at) x[at] = x[at - 1];
    x[at] = value;
  }
}

// Sorts uniform numbers between `bucket` and `bucket` + 1 over ratio: by counting in as many steps as there are
// numbers, which leaves next to nothing to compare.
void sort_bucket(uint64_t* bits, int64_t n, int64_t bucket, double ratio) {
  if (n > 2 * kSortBucket) return std::sort(bits, bits + n);  // not uniform
  int64_t end[2 * kSortBucket + 1];
  uint64_t copy[2 * kSortBucket];
  const auto step_of = [&](uint64_t x) {
    const double within = static_cast<double>(x) * ratio - static_cast<double>(bucket);
    return std::min(n - 1, static_cast<int64_t>(within * static_cast<double>(n)));
  };
  std::fill_n(end, n + 1, 0);
  for (int64_t j = 0; j < n; ++j) ++end[step_of(bits[j]) + 1];
  for (int64_t k = 0; k < n; ++k) end[k + 1] += end[k];
  std::copy_n(bits, n, copy);
  for (int64_t j = 0; j < n; ++j) bits[end[step_of(copy[j])]++] = copy[j];
  for (int64_t k = 0, begin = 0; k < n; begin = end[k++]) sort_few(bits + begin, end[k] - begin);
}

// The positions of m independent draws in ascending order, and one beyond all. The numbers are uniform, so equal
// buckets make sorting linear; were they not, it would only be slower. Pieces of the numbers are counted and moved into
// buckets that fit the first-level cache, side by side; then each bucket is sorted.
std::vector<uint64_t> sorted_offsets(Uniforms u, int64_t m, uint64_t total, bool parallel) {
  const int64_t buckets = m / kSortBucket + 1, pieces = std::min<int64_t>(buckets, 64);
  const double ratio = static_cast<double>(buckets) * 0x1p-53;
  const auto bucket_of = [&](uint64_t bits) { return static_cast<int64_t>(static_cast<double>(bits) * ratio); };
  const auto for_piece = [&](int64_t piece, const auto& work) {
    for (int64_t j = piece * m / pieces; j < (piece + 1) * m / pieces; ++j) work(u.bits(j));
  };
  const auto place = [&](int64_t bucket, int64_t piece) { return static_cast<size_t>(bucket * pieces + piece); };
  std::vector<int64_t> next(place(buckets, 0) + 1);  // of each piece in each bucket
  for_each(pieces, parallel,
           [&](int64_t piece) { for_piece(piece, [&](uint64_t bits) { ++next[place(bucket_of(bits), piece)]; }); });
  accumulate(next);
  std::vector<uint64_t> sorted(static_cast<size_t>(m) + 1, std::numeric_limits<uint64_t>::max());
  for_each(pieces, parallel, [&](int64_t piece) {
    for_piece(piece, [&](uint64_t bits) { sorted[static_cast<size_t>(next[place(bucket_of(bits), piece)]++)] = bits; });
  });
  for_each(buckets, parallel, [&](int64_t bucket) {  // each begin has become the end
    const int64_t begin = bucket == 0 ? 0 : next[place(bucket, 0) - 1], end = next[place(bucket + 1, 0) - 1];
    sort_bucket(sorted.data() + begin, end - begin, bucket, ratio);
    for (int64_t j = begin; j < end; ++j)
      sorted[static_cast<size_t>(j)] = fixed::offset(sorted[static_cast<size_t>(j)], total);
  });
  return sorted;
}

// Independent draws from masses of which only the sums before each block are known here.
struct Draws {
  std::vector<uint64_t> positions;  // sorted, and one beyond all
  const std::vector<uint64_t>& starts;

  int64_t before(int64_t block) const {
    return std::lower_bound(positions.begin(), positions.end() - 1, starts[static_cast<size_t>(block)]) -
           positions.begin();
  }
  // How many positions lie below each of n ascending sums, from `count` that lie below the first or before it. Every
  // step passes a position or a sum, without a branch on which.
  void merge(const uint64_t* sums, int64_t n, int64_t count, int64_t* below) const {
    for (int64_t i = 0; i < n;) {
      const bool lower = positions[static_cast<size_t>(count)] < sums[i];
      below[i] = count;
      count += lower;
      i += !lower;
    }
  }
};

template <class T>
struct Multinomial {
  const Masses<T>& masses;
  Draws draws;

  int64_t before(int64_t block) const { return draws.before(block); }
  void count(int64_t block, int64_t* below) const {
    uint64_t sums[kWeightBlock];
    masses.for_sums(block, [&](int64_t i, uint64_t c) { sums[i] = c; });
    draws.merge(sums, masses.size(block), below[-1], below);
  }
};

// floor(M q / T) copies of each; the remainders M q mod T are the masses of the draw. They sum to R T for R draws: a
// shift by the bit length of R brings that below T.
template <class T>
struct Residual {
  const Masses<T>& masses;
  fixed::Share share;
  std::vector<int64_t> copies;   // before each block, and in all
  std::vector<uint64_t> starts;  // of remainders
  int shift;
  Draws draws;

  Residual(const Masses<T>& of, int64_t m, Uniforms u, bool parallel)
      : masses(of),
        share(fixed::share(of.total(), m)),
        copies(of.before.size()),
        starts(of.before.size()),
        draws{{}, starts} {
    const auto sum_blocks = [&](auto& sums, auto part) {
      for_each(masses.blocks(), parallel, [&](int64_t b) {
        std::decay_t<decltype(sums[0])> sum = 0;
        for_divisions(b, [&](int64_t, fixed::Division d) { sum += part(d); });
        sums[static_cast<size_t>(b)] = sum;
      });
      accumulate(sums);
    };
    sum_blocks(copies, [](fixed::Division d) { return d.quotient; });
    const int64_t drawn = m - copies.back();
    shift = fixed::bit_length(static_cast<uint64_t>(drawn));
    sum_blocks(starts, [this](fixed::Division d) { return d.remainder >> shift; });
    draws.positions = sorted_offsets(u, drawn, starts.back(), parallel);
  }

  template <class Work>
  void for_divisions(int64_t block, const Work& work) const {
    alignas(64) uint64_t q[kWeightBlock];
    masses.read(block, q);
    for (int64_t i = 0; i < masses.size(block); ++i) work(i, fixed::divide(q[i], share));
  }

  int64_t before(int64_t block) const { return copies[static_cast<size_t>(block)] + draws.before(block); }
  void count(int64_t block, int64_t* below) const {
    int64_t copied[kWeightBlock], copy = copies[static_cast<size_t>(block)];
    uint64_t sums[kWeightBlock], sum = starts[static_cast<size_t>(block)];
    const int64_t n = masses.size(block), drawn = below[-1] - copy;
    for_divisions(block, [&](int64_t i, fixed::Division d) {
      copied[i] = copy += d.quotient;
      sums[i] = sum += d.remainder >> shift;
    });
    draws.merge(sums, n, drawn, below);
    for (int64_t i = 0; i < n; ++i) below[i] += copied[i];
  }
};

template <class Scheme>
void emit(const Scheme& scheme, bool parallel, int64_t* out) {
  for_each(scheme.masses.blocks(), parallel, [&](int64_t b) {
    alignas(64) int64_t room[kGroup + kWeightBlock];
    int64_t* const below = room + kGroup;
    below[-1] = scheme.before(b);
    if (below[-1] == scheme.before(b + 1)) return;
    scheme.count(b, below);
    kernels().weights.expand(b * kWeightBlock, below, scheme.masses.size(b), out);
  });
}

template <class T>
void draw_row(Scheme scheme, const Masses<T>& masses, int64_t m, Uniforms u, bool parallel, int64_t* out) {
  const fixed::Share share = fixed::share(masses.total(), m);
  switch (scheme) {
    case Scheme::kSystematic:
      return emit(Systematic<T>{masses, share, fixed::offset(u.bits(0), masses.total())}, parallel, out);
    case Scheme::kStratified:
      return emit(Stratified<T>{masses, share, u}, parallel, out);
    case Scheme::kMultinomial:
      return emit(Multinomial<T>{masses, {sorted_offsets(u, m, masses.total(), parallel), masses.before}}, parallel,
                  out);
    case Scheme::kResidual:
      return emit(Residual<T>(masses, m, u, parallel), parallel, out);
  }
}

// Those of a row of m samples.
int64_t numbers_of(Scheme scheme, int64_t m) {
  return scheme == Scheme::kSystematic ? 1 : m;
}

Status check_uniforms(Scheme scheme, int64_t row, int64_t m, Uniforms u) {
  const int64_t numbers = numbers_of(scheme, m);
  for (int64_t j = row * numbers; j < (row + 1) * numbers; ++j)
    if (!u.valid(j)) return {Fault::kUniform, j};
  return {};
}

// One of the rows of weights [rows, n].
template <class T>
Status resample_row(Scheme scheme, bool log, int64_t row, int64_t n, int64_t m, const T* weights, Uniforms u,
                    bool parallel, int64_t* out) {
  Masses<T> masses{weights + row * n, n, {log, 0, 0}, {}};
  Status status = measure(masses, parallel);
  status.position += row * n;
  if (!status) status = check_uniforms(scheme, row, m, u);
  if (!status) draw_row(scheme, masses, m, u.from(row * numbers_of(scheme, m)), parallel, out);
  return status;
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

// Survivors keep their slots; the others take the further copies, both in ascending order.
void permute_row(int64_t n, const int64_t* counts, int64_t* permuted) {
  int64_t parent = -1, copies = 0;
  for (int64_t i = 0; i < n; ++i) {
    permuted[i] = i;
    if (counts[i] > 0) continue;
    while (copies < 1) copies = counts[++parent] - 1;
    --copies;
    permuted[i] = parent;
  }
}

}  // namespace

template <class T>
Status resample(Scheme scheme, bool log, int64_t rows, int64_t n, int64_t m, const T* weights, Uniforms u,
                int64_t* ancestors) {
  return for_each_row(rows, std::max(n, m), [&](int64_t row, bool parallel) {
    return resample_row(scheme, log, row, n, m, weights, u, parallel, ancestors + row * m);
  });
}

template <class T>
Status adaptive_resample(Scheme scheme, double threshold, int64_t rows, int64_t n, const T* log_weights, Uniforms u,
                         int64_t* ancestors, int64_t* counts, T* normalized, T* log_sum, T* ess) {
  return for_each_row(rows, n, [&](int64_t row, bool parallel) {
    const T* const from = log_weights + row * n;
    int64_t *const a = ancestors + row * n, *const o = counts + row * n;
    T* const to = normalized + row * n;
    RowSums sums;
    Status status = sum_row(n, from, to, parallel, sums);
    status.position += row * n;
    if (!status) status = check_uniforms(scheme, row, n, u);
    if (status) return status;
    log_sum[row] = static_cast<T>(sums.log_sum());
    ess[row] = static_cast<T>(sums.ess());
    if (static_cast<double>(ess[row]) < threshold * static_cast<double>(n)) {
      if ((status = resample_row(scheme, true, row, n, n, log_weights, u, parallel, a))) return status;
      status = offspring_row(n, n, a, o);
      permute_row(n, o, a);
      std::fill_n(to, n, static_cast<T>(-std::log(static_cast<double>(n))));
      return status;
    }
    std::iota(a, a + n, 0);
    std::fill_n(o, n, 1);
    const double log_total = std::log(sums.total);
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>((static_cast<double>(from[i]) - sums.largest) - log_total);
    return status;
  });
}

template Status resample(Scheme, bool, int64_t, int64_t, int64_t, const float*, Uniforms, int64_t*);
template Status resample(Scheme, bool, int64_t, int64_t, int64_t, const double*, Uniforms, int64_t*);
template Status adaptive_resample(Scheme, double, int64_t, int64_t, const float*, Uniforms, int64_t*, int64_t*, float*,
                                  float*, float*);
template Status adaptive_resample(Scheme, double, int64_t, int64_t, const double*, Uniforms, int64_t*, int64_t*,
                                  double*, double*, double*);

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
    permute_row(n, counts.data(), permuted + row * n);
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
