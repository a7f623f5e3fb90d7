#include "cpu/evaluations.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "common/fixed_scan.h"
#include "cpu/parallel.h"

namespace fastsmc::cpu {
namespace {

constexpr int kLanes = 4;  // chains of multiplications side by side, for their latency
constexpr uint64_t kFirst = 0x9e3779b97f4a7c15, kSecond = 0xd1342543de82ef95;

uint64_t fold(uint64_t a, uint64_t b) {
  return (a * b) ^ fixed::multiply_high(a, b);
}

// Two hashes with nothing in common but their words, each a multiplication of all 128 bits for every two of them.
class Fingerprint {
 public:
  using Block = std::array<uint64_t, 2 * kLanes>;

  explicit Fingerprint(uint64_t seed) {
    for (uint64_t k = 0; k < kLanes; ++k) {
      low_[k] = fold(seed ^ kFirst, kSecond + k);
      high_[k] = fold(seed ^ kSecond, kFirst + k);
    }
  }
  void add(const Block& words) {
    for (size_t k = 0; k < kLanes; ++k) {
      const uint64_t a = words[2 * k], b = words[2 * k + 1];
      low_[k] = fold(a ^ kFirst, b ^ low_[k]);
      high_[k] = fold(b ^ kSecond, a ^ high_[k]);
    }
  }
  uint64_t low() const { return of(low_, kFirst); }
  uint64_t high() const { return of(high_, kSecond); }

 private:
  using Lanes = std::array<uint64_t, kLanes>;

  static uint64_t of(const Lanes& lanes, uint64_t start) {
    return std::accumulate(lanes.begin(), lanes.end(), start,
                           [](uint64_t sum, uint64_t lane) { return fold(sum ^ lane, kFirst ^ kSecond); });
  }
  Lanes low_, high_;
};

// Reads or copies of whole particles, on all threads where there is enough of them.
template <class Work>
void for_particles(size_t count, int64_t dim, const Work& work) {
  const auto particles = static_cast<int64_t>(count);
  for_each(particles, particles * dim >= kParallelFrom, [&](int64_t i) { work(static_cast<size_t>(i)); });
}

}  // namespace

Evaluations::Key Evaluations::key_of(int64_t density, const float* particle, int64_t dim) {
  constexpr size_t kBytes = sizeof(Fingerprint::Block);
  Fingerprint print(static_cast<uint64_t>(density));
  Fingerprint::Block words;
  const size_t size = static_cast<size_t>(dim) * sizeof(float), whole = size / kBytes * kBytes;
  const char* const bytes = reinterpret_cast<const char*>(particle);
  for (size_t at = 0; at < whole; at += kBytes) {
    std::memcpy(words.data(), bytes + at, kBytes);
    print.add(words);
  }
  if (whole < size) {
    words = {};
    std::memcpy(words.data(), bytes + whole, size - whole);
    print.add(words);
  }
  return {print.low(), print.high()};
}

std::vector<Evaluations::Key> Evaluations::keys_of(int64_t density, const float* particles, int64_t count,
                                                   int64_t dim) {
  std::vector<Key> keys(static_cast<size_t>(count));
  for_particles(keys.size(), dim,
                [&](size_t i) { keys[i] = key_of(density, particles + static_cast<int64_t>(i) * dim, dim); });
  return keys;
}

int64_t Evaluations::log_likelihood(int64_t density, const NetworkSpec& spec, const Batch& batch, int64_t count,
                                    const float* particles, double* log_likelihood, float* grad) {
  const std::lock_guard<std::mutex> lock(mutex_);
  make_room(count, spec.num_params());
  const std::vector<Key> keys = keys_of(density, particles, count, dim_);
  const std::vector<int64_t> fresh = recall(keys, log_likelihood, grad);
  const int64_t bad = compute(fresh, spec, batch, count, particles, log_likelihood, grad);
  if (bad < 0) remember(keys, fresh, log_likelihood, grad);
  return bad;
}

int64_t Evaluations::trajectory(int64_t density, const NetworkSpec& spec, const Batch& batch, const UpdatePlan& plan,
                                float step_size, int64_t steps, const Phase& phase) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t bad = cpu::trajectory(spec, batch, plan, step_size, steps, phase);
  if (bad >= 0 || steps == 0) return bad;
  make_room(phase.count, spec.num_params());
  std::vector<int64_t> all(static_cast<size_t>(phase.count));
  std::iota(all.begin(), all.end(), 0);
  remember(keys_of(density, phase.position, phase.count, dim_), all, phase.log_likelihood, phase.grad);
  return bad;
}

int64_t Evaluations::computed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return computed_;
}

void Evaluations::forget() {
  const std::lock_guard<std::mutex> lock(mutex_);
  clear();
}

const Evaluations::Evaluation* Evaluations::find(const Key& key, bool with_grad) const {
  for (const Population* population : {&latest_, &known_}) {
    const auto found = population->find(key);
    if (found != population->end() && (!with_grad || found->second.slot != kNone)) return &found->second;
  }
  return nullptr;
}

std::vector<int64_t> Evaluations::recall(const std::vector<Key>& keys, double* log_likelihood, float* grad) const {
  std::vector<const Evaluation*> found(keys.size());
  std::vector<int64_t> others;
  for (size_t i = 0; i < keys.size(); ++i) {
    found[i] = find(keys[i], grad != nullptr);
    if (found[i] == nullptr)
      others.push_back(static_cast<int64_t>(i));
    else
      log_likelihood[i] = found[i]->log_likelihood;
  }
  if (grad != nullptr && others.size() < keys.size())
    for_particles(keys.size(), dim_, [&](size_t i) {
      if (found[i] != nullptr) std::copy_n(gradient(found[i]->slot), dim_, grad + static_cast<int64_t>(i) * dim_);
    });
  return others;
}

int64_t Evaluations::compute(const std::vector<int64_t>& some, const NetworkSpec& spec, const Batch& batch,
                             int64_t count, const float* particles, double* log_likelihood, float* grad) {
  const auto number = static_cast<int64_t>(some.size());
  computed_ += number;
  if (number == count) return network_log_likelihood(spec, batch, count, particles, log_likelihood, grad);
  if (number == 0) return -1;
  const size_t size = checked_bytes(some.size(), static_cast<size_t>(dim_));
  const Buffer<float> theirs(size), slopes(grad == nullptr ? 0 : size);
  std::vector<double> values(some.size());
  for_particles(some.size(), dim_, [&](size_t k) {
    std::copy_n(particles + some[k] * dim_, dim_, theirs.get() + static_cast<int64_t>(k) * dim_);
  });
  const int64_t bad = network_log_likelihood(spec, batch, number, theirs.get(), values.data(),
                                             grad == nullptr ? nullptr : slopes.get());
  for_particles(some.size(), dim_, [&](size_t k) {
    log_likelihood[some[k]] = values[k];
    if (grad != nullptr) std::copy_n(slopes.get() + static_cast<int64_t>(k) * dim_, dim_, grad + some[k] * dim_);
  });
  return bad;
}

void Evaluations::remember(const std::vector<Key>& keys, const std::vector<int64_t>& fresh,
                           const double* log_likelihood, const float* grad) try {
  Population now;
  for (const Key& key : keys)
    for (Population* population : {&latest_, &known_})
      if (now.count(key) == 0) now.insert(population->extract(key));
  const bool knew_some = !now.empty();
  if (knew_some) {
    if (run_ > 0) usual_run_ = run_;
    run_ = 0;
    drop(known_);
  } else {
    ++run_;
  }
  drop(latest_);

  std::vector<Copy> copies;
  if (grad != nullptr && grads_.get() == nullptr) grads_ = Buffer<float>(free_.size() * static_cast<size_t>(dim_));
  for (const int64_t i : fresh) {
    Evaluation& one = now.insert({keys[static_cast<size_t>(i)], {log_likelihood[i], kNone}}).first->second;
    if (grad == nullptr || one.slot != kNone || (!knew_some && run_ < usual_run_)) continue;
    one.slot = free_.back();
    free_.pop_back();
    copies.push_back({grad + i * dim_, gradient(one.slot)});
  }
  for_particles(copies.size(), dim_, [&](size_t k) { std::copy_n(copies[k].from, dim_, copies[k].to); });
  (knew_some ? known_ : latest_) = std::move(now);
} catch (const std::bad_alloc&) {  // what is not remembered is computed again
  clear();
}

void Evaluations::make_room(int64_t count, int64_t dim) {
  if (count <= room_ && dim == dim_) return;
  room_ = count;
  dim_ = dim;
  clear();
}

void Evaluations::drop(Population& population) {
  for (const auto& [key, one] : population)
    if (one.slot != kNone) free_.push_back(one.slot);
  population.clear();
}

void Evaluations::clear() {
  run_ = usual_run_ = 0;
  known_.clear();
  latest_.clear();
  grads_ = {};
  free_.resize(static_cast<size_t>(2 * room_));
  std::iota(free_.begin(), free_.end(), 0);
}

}  // namespace fastsmc::cpu
