// The first layer of one particle where most inputs are zero, as in images, counts and one-hot columns: what is zero is
// not multiplied. Units are vector lanes, and an entry of x adds its multiple of one row of units to another:
//
//   forward          z[sample]   += x[sample, input] W^T[input]     entries of a sample, by blocks of inputs
//   weight gradient  dW^T[input] += x[sample, input] dz[sample]     entries of an input, by tiles of samples
//
// Memory traffic: the row that is added to stays in registers and the rows that are read in L1, one load for each
// multiplication, which the micro-kernel shares among kRows. W^T is made once a particle, in L2 like dW^T, which is
// added to a sum of its own kind once a group of tiles, and turned back once a particle.
//
// What is left out is 0 a, which changes no sum as long as a is finite. Where it is not, nothing is left out, so that 0
// times infinity is NaN as in every other product.
#pragma once

#include "cpu/dense_kernel.h"

namespace fastsmc::cpu::FASTSMC_LEVEL {

constexpr int kWide = kRows * kColumns + 1;  // accumulators of a row, which leave registers for what they are fed with
constexpr int64_t kBlockBytes = 32 << 10;    // of W^T, which stay in L1 while a tile passes

// A matrix with a row of units for each sample or input, in panels of at most kWide vectors side by side:
// [panel][rows][width].
struct UnitPanels {
  int64_t units, count, width;

  explicit UnitPanels(int64_t of_units) : units(of_units) {
    const int64_t vectors = (units + kLanes - 1) / kLanes;
    count = (vectors + kWide - 1) / kWide;
    width = (vectors + count - 1) / count * kLanes;
  }
  int64_t floats(int64_t rows) const { return count * rows * width; }
  int64_t units_of(int64_t panel) const {
    const int64_t left = units - panel * width;
    return left < width ? left : width;
  }
};

struct Entry {
  int32_t at;  // where the row of its sample or input starts, in floats
  float value;
};

// What is not zero in a tile of `depth` samples. The entries of sample s in block b are from starts[b * depth + s] to
// the next start; those of input k from input_starts()[k]. starts[0] is -1 where a tile is not worth listing.
struct SparseTile {
  int64_t inputs, depth, width;  // width of a row of units
  int32_t* starts;
  Entry *by_sample, *by_input;  // by_input null where no gradient is wanted

  int64_t block() const {
    const int64_t fit = kBlockBytes / (width * static_cast<int64_t>(sizeof(float)));
    const int64_t most = fit < 2 * kDepth ? fit : 2 * kDepth;  // so that a chain of additions is kDepth long on average
    return inputs < most ? inputs : most;
  }
  // Whether entries, and places of the rows that they are multiplied by, are numbers of 32 bits.
  bool countable() const { return inputs * (width > depth ? width : depth) <= INT32_MAX; }
  int64_t blocks() const { return (inputs + block() - 1) / block(); }
  int64_t num_starts() const { return blocks() * depth + 1 + inputs + kLanes; }  // the last are added to by vectors
  int32_t* input_starts() const { return starts + blocks() * depth + 1; }
};

static inline int64_t sum_of_counts(vint counts) {
  int64_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += counts[i];
  return sum;
}

// A rectangle of a batch.
struct Strided {
  const float* data;
  int64_t rows, columns, row_stride, column_stride;

  const float* at(int64_t row, int64_t column) const { return data + row * row_stride + column * column_stride; }
  // Columns from `column` on, zeros from `end` on.
  vfloat row(int64_t row, int64_t column, int64_t end) const {
    return load_row(at(row, column), column_stride, end - column < kLanes ? end - column : kLanes);
  }
  Strided from(int64_t row) const { return {at(row, 0), rows - row, columns, row_stride, column_stride}; }
  // The share of at most 128 rows evenly apart that is not zero.
  double density() const {
    const int64_t looked_at = rows < 128 ? rows : 128;
    vint found{};
    for (int64_t r = 0; r < looked_at; ++r)
      for (int64_t k = 0; k < columns; k += kLanes) found -= row(r * rows / looked_at, k, columns) != vfloat{};
    return static_cast<double>(sum_of_counts(found)) / static_cast<double>(looked_at * columns);
  }
};

// The time an entry takes, in rows of units of the micro-kernel: it waits for about three loads more than its vectors.
static double time_of_entry(int64_t width) {
  return 1 + 3. * kLanes / static_cast<double>(width);
}

// Whether so many entries have room in the place of x, and are multiplied in less time where `tiles` tiles share W^T:
// to turn W and dW over takes as long as 16 samples.
static bool worth_listing(int64_t entries, int64_t samples, int64_t tiles, const SparseTile& tile) {
  if (2 * (entries + kLanes) > tile.inputs * tile.depth) return false;
  const double entry = time_of_entry(tile.width), inputs = static_cast<double>(tile.inputs);
  return static_cast<double>(entries) * entry + 16 * inputs / static_cast<double>(tiles) <
         inputs * static_cast<double>(samples);
}

// Entries of the lanes of a mask, whose numbers start with `first`; returns how many. There is room for kLanes.
static inline int32_t list_lanes(vint mask, vfloat values, int32_t first, Entry* to) {
#if FASTSMC_USE_AVX512
  const __mmask16 bits = _mm512_movepi32_mask((__m512i)mask);
  const auto at = (vint)_mm512_maskz_compress_epi32(bits, (__m512i)(lane_numbers() + first));
  const auto value = (vint)_mm512_maskz_compress_epi32(bits, (__m512i)values);
  for (int half = 0; half < 2; ++half) {
    vint turns;
    for (int i = 0; i < kLanes; ++i) turns[i] = (half + i % 2 * 2) * kLanes / 2 + i / 2;
    store(to + half * kLanes / 2, __builtin_shuffle(at, value, turns));
  }
  return __builtin_popcount(bits);
#else
  int32_t count = 0;
  for (int i = 0; i < kLanes; ++i) {
    to[count] = {first + i, values[i]};
    count -= mask[i];
  }
  return count;
#endif
}

static void list_entries(Strided x, int64_t tiles, SparseTile tile) {
  const int64_t samples = x.rows < tile.depth ? x.rows : tile.depth, block = tile.block(), blocks = tile.blocks();
  tile.starts[0] = -1;
  if (!tile.countable()) return;
  vint found{};
  for (int64_t s = 0; s < samples; ++s)
    for (int64_t k = 0; k < tile.inputs; k += kLanes) found -= x.row(s, k, tile.inputs) != vfloat{};
  const int64_t count = sum_of_counts(found);
  if (!worth_listing(count, samples, tiles, tile)) return;

  int32_t *start = tile.starts, *of_input = tile.input_starts(), n = 0;
  memset(of_input, 0, static_cast<size_t>(tile.inputs + kLanes) * sizeof(int32_t));
  for (int64_t first = 0; first < tile.inputs; first += block) {
    const int64_t end = first + block < tile.inputs ? first + block : tile.inputs;
    for (int64_t s = 0; s < tile.depth; ++s) {
      *start++ = n;
      for (int64_t k = first; k < end && s < samples; k += kLanes) {
        const vfloat values = x.row(s, k, end);
        const vint listed = values != vfloat{};
        if (!any(listed)) continue;
        n += list_lanes(listed, values, static_cast<int32_t>(k), tile.by_sample + n);
        store(of_input + k + 1, load<vint>(of_input + k + 1) - listed);
      }
    }
  }
  *start = n;

  for (int64_t k = 0; k < tile.inputs; ++k) of_input[k + 1] += of_input[k];
  const auto width = static_cast<int32_t>(tile.width);
  start = tile.starts;
  for (int64_t b = 0; b < blocks; ++b)
    for (int32_t s = 0; s < tile.depth; ++s, ++start)
      for (int32_t i = start[0]; i < start[1]; ++i) {
        Entry& entry = tile.by_sample[i];
        if (tile.by_input != nullptr) tile.by_input[of_input[entry.at]++] = {s * width, entry.value};
        entry.at *= width;
      }
  // what each start has become is the next one
  memmove(of_input + 1, of_input, static_cast<size_t>(tile.inputs) * sizeof(int32_t));
  of_input[0] = 0;
}

// Of rows that have every one of `columns` columns from `first` on, the entries and those that are zero.
static void complete(const int32_t* starts, const Entry* entries, int64_t rows, int64_t first, int64_t columns,
                     int64_t width, int32_t* to_starts, Entry* to) {
  int32_t n = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const Entry *entry = entries + starts[r], *end = entries + starts[r + 1];
    to_starts[r] = n;
    for (int64_t c = first; c < first + columns; ++c) {
      const auto at = static_cast<int32_t>(c * width);
      to[n++] = entry < end && entry->at == at ? *entry++ : Entry{at, 0};
    }
  }
  to_starts[rows] = n;
}

// The entries of row r are from starts[r] to starts[r + 1], and are multiplied by rows of b. Where c is fresh, it is
// set, not added to.
struct SparseProduct {
  const int32_t* starts;
  int64_t rows;
  const Entry* entries;
  const float* b;
  float* c;
  bool fresh;
};

template <int Vectors>
static void add_entries(SparseProduct p) {
  constexpr int kChains = Vectors > 6 ? 1 : Vectors > 3 ? 2 : 4;  // few accumulators would wait for each other
  for (int64_t r = 0; r < p.rows; ++r, p.c += Vectors * kLanes) {
    const Entry *entry = p.entries + p.starts[r], *end = p.entries + p.starts[r + 1];
    if (entry == end && !p.fresh) continue;
    vfloat sum[kChains][Vectors] = {};
    const auto add = [&](const Entry& e, vfloat* to) {
      const vfloat factor = splat<vfloat>(e.value);
      const float* row = p.b + e.at;
#pragma GCC unroll 25
      for (int v = 0; v < Vectors; ++v) to[v] = fma(factor, load<vfloat>(row + v * kLanes), to[v]);
    };
    for (; end - entry >= kChains; entry += kChains)
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) add(entry[chain], sum[chain]);
    for (; kChains > 1 && entry < end; ++entry) add(*entry, sum[0]);
#pragma GCC unroll 25
    for (int v = 0; v < Vectors; ++v) {
      vfloat total = sum[0][v];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) total += sum[chain][v];
      float* c = p.c + v * kLanes;
      store(c, p.fresh ? total : load<vfloat>(c) + total);
    }
  }
}

using AddEntries = void (*)(SparseProduct);

template <int Vectors>
constexpr AddEntries add_entries_of() {
  if constexpr (Vectors <= kWide)
    return add_entries<Vectors>;
  else
    return nullptr;
}

template <int... Before>
struct Table {
  static constexpr AddEntries by_vectors[] = {add_entries_of<Before + 1>()...};
};
using AddEntriesTable = Table<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24>;
static_assert(kWide <= 25, "the table has them all");

static bool all_finite(const float* x, int64_t count) {
  vfloat zeros[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int v = 0; v < 4; ++v) zeros[v] += load<vfloat>(x + i + v * kLanes) * 0.f;
  float zero = 0;
  for (; i < count; ++i) zero += x[i] * 0.f;
  return sum_lanes((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) + static_cast<double>(zero) == 0;
}

// What becomes of up to kLanes numbers: Fill where there is room for kLanes.
struct Fill {
  static void put(float* to, vfloat v, int64_t) { store(to, v); }
};

struct Set {
  static void put(float* to, vfloat v, int64_t count) {
    if (count >= kLanes) return store(to, v);
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
  }
};

struct Add {
  static void put(float* to, vfloat v, int64_t count) {
    if (count >= kLanes) return store(to, load<vfloat>(to) + v);
    for (int64_t i = 0; i < count; ++i) to[i] += v[i];
  }
};

// Columns of `from` to rows of `to`, to_rows long and written one after the other since they are farther away, with
// zeros where `from` has no more rows.
template <class Put>
static inline void turn(Strided from, float* to, int64_t to_row, int64_t to_rows) {
  for (int64_t c = 0; c < from.columns; c += kLanes)
    for (int64_t r = 0; r < to_rows; r += kLanes) {
      const int64_t count = from.columns - c < kLanes ? from.columns - c : kLanes;
      vfloat square[kLanes];
      if (count == kLanes && r + kLanes <= from.rows) {
        for (int k = 0; k < kLanes; ++k) square[k] = load<vfloat>(from.at(r + k, c));
      } else {
        for (int k = 0; k < kLanes; ++k) square[k] = r + k < from.rows ? from.row(r + k, c, from.columns) : vfloat{};
      }
      transpose(square);
      for (int64_t k = 0; k < count; ++k) Put::put(to + (c + k) * to_row + r, square[k], to_rows - r);
    }
}

// A dense first layer of one particle. Its weights and their gradient by rows of units are in memory that load takes.
//
// Tiles add to the gradient of their group. That of a group whose tiles were all listed is kept, in a total that stands
// for the caller's until it is settled; that of another goes to the sum which the other tiles of the group add to.
class SparseLayer {
 public:
  static int64_t memory(const Layer& layer) {
    const UnitPanels panels(layer.out_channels);
    return 3 * panels.floats(layer.inputs()) + panels.floats(kTile) + 3 * kPiece + kLanes;
  }

  SparseLayer(int64_t inputs, UnitPanels panels, const float* params)
      : inputs_(inputs),
        panels_(panels),
        multiply_(AddEntriesTable::by_vectors[panels_.width / kLanes - 1]),
        params_(params) {}

  bool loaded() const { return weights_ != nullptr; }

  // Returns the end of the memory that is taken.
  float* load(float* memory) {
    weights_ = memory;
    group_ = weights_ + panels_.floats(inputs_);
    total_ = group_ + panels_.floats(inputs_);
    rows_ = total_ + panels_.floats(inputs_);
    piece_ = reinterpret_cast<Entry*>(rows_ + panels_.floats(kTile));
    piece_starts_ = reinterpret_cast<int32_t*>(piece_ + kPiece);
    finite_ = all_finite(params_, inputs_ * panels_.units);
    turn_over(params_, weights_);
    return rows_ + panels_.floats(kTile) + 3 * kPiece + kLanes;
  }

  // z by panels of samples, without activation; behind `samples` they are the last again.
  void forward(SparseTile tile, int64_t samples, float* z) const {
    const float* bias = params_ + inputs_ * panels_.units;
    const int64_t width = panels_.width, block = tile.block(), blocks = tile.blocks();
    for (int64_t p = 0; p < panels_.count; ++p) {
      const int64_t units = panels_.units_of(p);
      for (int64_t s = 0; s < tile.depth; ++s) {
        float* row = rows_ + s * width;
        memcpy(row, bias + p * width, static_cast<size_t>(units) * sizeof(float));
        memset(row + units, 0, static_cast<size_t>(width - units) * sizeof(float));
      }
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t left = inputs_ - b * block;
        multiply(
            {tile.starts + b * tile.depth, tile.depth, tile.by_sample, weights_ + p * width * inputs_, rows_, false},
            b * block, left < block ? left : block, finite_);
      }
      for (int64_t s = samples; s < tile.depth; ++s)
        memcpy(rows_ + s * width, rows_ + (samples - 1) * width, static_cast<size_t>(width) * sizeof(float));
      const Panels panels{tile.depth};
      for (int64_t q = 0; q < panels.count(); ++q) {
        const int64_t w = panels.columns(q) * kLanes;
        turn<Fill>({rows_ + q * kPanel * width, w, units, width, 1}, z + q * kPanel * panels_.units + p * width * w, w,
                   w);
      }
    }
  }

  // dz by panels of samples; whether it is finite.
  void backward(SparseTile tile, const float* dz, bool finite) {
    const int64_t width = panels_.width;
    const Panels samples{tile.depth};
    for (int64_t p = 0; p < panels_.count; ++p) {
      for (int64_t q = 0; q < samples.count(); ++q) {
        const int64_t w = samples.columns(q) * kLanes;
        turn<Fill>({dz + q * kPanel * panels_.units + p * width * w, panels_.units_of(p), w, w, 1},
                   rows_ + q * kPanel * width, width, width);
      }
      multiply({tile.input_starts(), inputs_, tile.by_input, rows_, group_ + p * width * inputs_, !has_group_}, 0,
               tile.depth, finite);
    }
    has_group_ = true;
  }

  // Adds the group to a sum, [units][inputs].
  void give_group(float* sum) {
    if (has_group_) turn_back<Add>(group_, sum);
    has_group_ = false;
  }

  // Adds the group to the total, which begins as the caller's, or, where that is fresh, as nothing.
  void keep_group(const float* callers, bool fresh) {
    if (!has_total_ && fresh) {
      float* const first = group_;
      group_ = total_;
      total_ = first;
    } else {
      if (!has_total_) turn_over(callers, total_);
      add_to(total_, group_, panels_.floats(inputs_));
    }
    has_total_ = true;
    has_group_ = false;
  }

  // The caller's total becomes what was kept.
  void settle(float* callers) {
    if (has_total_) turn_back<Set>(total_, callers);
    has_total_ = false;
  }

 private:
  static constexpr int64_t kPiece = kTile * 2 * kDepth;  // entries of a block of a tile, all of them

  // Where b is not finite, nothing is left out of the rows, which are of `columns` columns from `first` on.
  void multiply(SparseProduct p, int64_t first, int64_t columns, bool finite) const {
    if (finite) return multiply_(p);
    const int64_t rows = p.rows, most = kPiece / columns;
    for (int64_t r = 0; r < rows; r += most, p.c += most * panels_.width) {
      p.rows = rows - r < most ? rows - r : most;
      complete(p.starts + r, p.entries, p.rows, first, columns, panels_.width, piece_starts_, piece_);
      multiply_({piece_starts_, p.rows, piece_, p.b, p.c, p.fresh});
    }
  }

  // [units][inputs] to rows of units.
  void turn_over(const float* from, float* to) const {
    for (int64_t p = 0; p < panels_.count; ++p)
      turn<Fill>({from + p * panels_.width * inputs_, panels_.units_of(p), inputs_, inputs_, 1},
                 to + p * panels_.width * inputs_, panels_.width, panels_.width);
  }
  template <class Put>
  void turn_back(const float* from, float* to) const {
    for (int64_t p = 0; p < panels_.count; ++p)
      turn<Put>({from + p * panels_.width * inputs_, inputs_, panels_.units_of(p), panels_.width, 1},
                to + p * panels_.width * inputs_, inputs_, inputs_);
  }

  int64_t inputs_;
  UnitPanels panels_;
  AddEntries multiply_;
  const float* params_;
  float *weights_ = nullptr, *group_ = nullptr, *total_ = nullptr, *rows_ = nullptr;
  Entry* piece_ = nullptr;
  int32_t* piece_starts_ = nullptr;
  bool finite_ = false, has_group_ = false, has_total_ = false;
};

}  // namespace fastsmc::cpu::FASTSMC_LEVEL
