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
#include <utility>
#include <vector>

#include "common/fixed_scan.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/weights.h"

namespace fastsmc::cpu {
namespace {

constexpr int64_t kGroup = 8;          // of weights, as the kernels take them
constexpr int64_t kSampleGroups = 64;  // that tell the scale

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

// Independent draws in the order of equal steps of mass, as many as there are draws: since the numbers are uniform, a
// step has one or two, which need not be sorted to say how many lie below a sum. Were they not uniform, it would only
// be slower. Pieces of the numbers are counted and moved into buckets of steps that fit the first-level cache, side by
// side; then each bucket is put in order.
class Draws {
 public:
  // Once, before all else.
  void take(Uniforms u, int64_t m, uint64_t total, bool parallel) {
    steps_ = std::max<int64_t>(m, 1);
    ratio_ = m > 0 ? static_cast<double>(m) / static_cast<double>(total) : 0;
    const size_t positions_at = memory_.reserve<uint64_t>(static_cast<size_t>(m + kFew));
    const size_t begin_at = memory_.reserve<int32_t>(static_cast<size_t>(steps_ + 1));
    positions_ = memory_.at<uint64_t>(positions_at);
    begin_ = memory_.at<int32_t>(begin_at);
    const int64_t buckets = (steps_ + kBucket - 1) / kBucket, pieces = std::min<int64_t>(buckets, 64);
    std::vector<int64_t> next(static_cast<size_t>(pieces * buckets));  // where each piece goes on in each bucket
    const auto at = [&](int64_t piece, int64_t bucket) -> int64_t& {
      return next[static_cast<size_t>(piece * buckets + bucket)];
    };
    const auto for_piece = [&](int64_t piece, const auto& work) {
      const int64_t begin = piece * m / pieces, end = (piece + 1) * m / pieces;
      for (int64_t j = begin; j < end; ++j) {
        const uint64_t position = fixed::offset(u.bits(j), total);
        work(position, at(piece, step_of(position) / kBucket));
      }
    };
    for_each(pieces, parallel, [&](int64_t piece) { for_piece(piece, [](uint64_t, int64_t& place) { ++place; }); });
    int64_t sum = 0;
    for (int64_t bucket = 0; bucket < buckets; ++bucket)
      for (int64_t piece = 0; piece < pieces; ++piece) sum += std::exchange(at(piece, bucket), sum);
    for_each(pieces, parallel, [&](int64_t piece) {
      for_piece(piece, [&](uint64_t position, int64_t& place) { positions_[place++] = position; });
    });
    const auto end_of = [&](int64_t bucket) { return bucket < 0 ? 0 : at(pieces - 1, bucket); };  // begins are ends now
    for_each(buckets, parallel, [&](int64_t bucket) { order(bucket, end_of(bucket - 1), end_of(bucket)); });
    begin_[steps_] = static_cast<int32_t>(m);
    std::fill_n(positions_ + m, kFew, std::numeric_limits<uint64_t>::max());
  }

  // How many positions lie below a sum of masses. All that follow those of its step are above it.
  int64_t below(uint64_t sum) const {
    const int32_t* const step = begin_ + step_of(sum);
    const uint64_t *const first = positions_ + step[0], *const end = positions_ + step[1];
    if (end - first > kFew) return std::lower_bound(first, end, sum) - positions_;
    int64_t count = step[0];
    for (int k = 0; k < kFew; ++k) count += first[k] < sum;
    return count;
  }

 private:
  static constexpr int64_t kBucket = 2048, kFew = 4;

  int64_t step_of(uint64_t position) const {
    return std::min(steps_ - 1, static_cast<int64_t>(static_cast<double>(static_cast<int64_t>(position)) * ratio_));
  }

  // Positions [begin, end) are those of a bucket.
  void order(int64_t bucket, int64_t begin, int64_t end) {
    const int64_t first = bucket * kBucket, count = std::min(kBucket, steps_ - first);
    int32_t next[kBucket + 1] = {};
    for (int64_t j = begin; j < end; ++j) ++next[step_of(positions_[j]) - first + 1];
    next[0] = static_cast<int32_t>(begin);
    for (int64_t k = 0; k < count; ++k) {
      begin_[first + k] = next[k];
      next[k + 1] += next[k];
    }
    if (end - begin > 2 * kBucket) return std::sort(positions_ + begin, positions_ + end);
    uint64_t copy[2 * kBucket];
    std::copy(positions_ + begin, positions_ + end, copy);
    for (int64_t j = 0; j < end - begin; ++j) positions_[next[step_of(copy[j]) - first]++] = copy[j];
    for (int64_t k = 0, from = begin; k < count; from = next[k++])
      if (next[k] - from > kFew) std::sort(positions_ + from, positions_ + next[k]);
  }

  int64_t steps_ = 0;
  double ratio_ = 0;
  Workspace memory_;
  uint64_t* positions_ = nullptr;  // and kFew beyond all
  int32_t* begin_ = nullptr;       // of each step, and the end
};

template <class T>
struct Multinomial {
  const Masses<T>& masses;
  Draws draws;

  Multinomial(const Masses<T>& of, int64_t m, Uniforms u, bool parallel) : masses(of) {
    draws.take(u, m, masses.total(), parallel);
  }

  int64_t before(int64_t block) const { return draws.below(masses.mass_before(block)); }
  void count(int64_t block, int64_t* below) const {
    masses.for_sums(block, [&](int64_t i, uint64_t c) { below[i] = draws.below(c); });
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
      : masses(of), share(fixed::share(of.total(), m)), copies(of.before.size()), starts(of.before.size()) {
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
    draws.take(u, drawn, starts.back(), parallel);
  }

  template <class Work>
  void for_divisions(int64_t block, const Work& work) const {
    alignas(64) uint64_t q[kWeightBlock];
    masses.read(block, q);
    for (int64_t i = 0; i < masses.size(block); ++i) work(i, fixed::divide(q[i], share));
  }

  int64_t before(int64_t block) const {
    const auto b = static_cast<size_t>(block);
    return copies[b] + draws.below(starts[b]);
  }
  void count(int64_t block, int64_t* below) const {
    int64_t copied = copies[static_cast<size_t>(block)];
    uint64_t sum = starts[static_cast<size_t>(block)];
    for_divisions(block, [&](int64_t i, fixed::Division d) {
      copied += d.quotient;
      sum += d.remainder >> shift;
      below[i] = copied + draws.below(sum);
    });
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
      return emit(Multinomial<T>(masses, m, u, parallel), parallel, out);
    case Scheme::kResidual:
      return emit(Residual<T>(masses, m, u, parallel), parallel, out);
  }
}

// Those of a row of m samples.
int64_t numbers_of(Scheme scheme, int64_t m) {
  return scheme == Scheme::kSystematic ? 1 : m;
}

Status check_uniforms(Scheme scheme, int64_t row, int64_t m, Uniforms u, bool parallel) {
  const int64_t numbers = numbers_of(scheme, m), blocks = blocks_of(numbers);
  std::vector<int64_t> bad(static_cast<size_t>(blocks), -1);  // the first of each block
  for_each(blocks, parallel, [&](int64_t b) {
    const int64_t begin = row * numbers + b * kWeightBlock, end = begin + size_of_block(numbers, b);
    int64_t j = begin;
    while (j < end && u.valid(j)) ++j;
    if (j < end) bad[static_cast<size_t>(b)] = j;
  });
  for (const int64_t j : bad)
    if (j >= 0) return {Fault::kUniform, j};
  return {};
}

// One of the rows of weights [rows, n].
template <class T>
Status resample_row(Scheme scheme, bool log, int64_t row, int64_t n, int64_t m, const T* weights, Uniforms u,
                    bool parallel, int64_t* out) {
  Masses<T> masses{weights + row * n, n, {log, 0, 0}, {}};
  Status status = measure(masses, parallel);
  status.position += row * n;
  if (!status) status = check_uniforms(scheme, row, m, u, parallel);
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
    if (!status) status = check_uniforms(scheme, row, n, u, parallel);
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
