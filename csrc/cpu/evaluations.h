// Log-likelihoods and gradients of particles that were computed before, found again by the particles' bits.
//
// Samplers that hand no values on ask twice for the same particle: for its weight where a move has ended, and where the
// next one starts. Two populations are remembered, that of the latest call and that of the latest call that knew any of
// its particles, which so outlasts the points of a trajectory: at most two gradients for each particle. Of the calls of
// a trajectory, which know nothing, only those keep gradients that come as late as the last of the trajectory before:
// the others would be copied for nothing.
#pragma once

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cpu/memory.h"
#include "cpu/network.h"

namespace fastsmc::cpu {

class Evaluations {
 public:
  // As network_log_likelihood. `density` is a number for all that a result depends on beside the particles: the data,
  // the network, its precision.
  int64_t log_likelihood(int64_t density, const NetworkSpec& spec, const Batch& batch, int64_t count,
                         const float* particles, double* log_likelihood, float* grad);
  // As cpu::trajectory; what is known at its end is remembered.
  int64_t trajectory(int64_t density, const NetworkSpec& spec, const Batch& batch, const UpdatePlan& plan,
                     float step_size, int64_t steps, const Phase& phase);
  // Of how many particles the log-likelihood was computed, and not found.
  int64_t computed();
  // Frees the memory, too.
  void forget();

 private:
  // 128 bits of hash, by which particles count as the same.
  struct Key {
    uint64_t low, high;
    bool operator==(const Key& other) const { return low == other.low && high == other.high; }
  };
  struct Low {
    size_t operator()(const Key& key) const { return key.low; }
  };
  struct Evaluation {
    double log_likelihood;
    int64_t slot;  // of grads_, or kNone where the gradient is not known
  };
  struct Copy {
    const float* from;
    float* to;
  };
  using Population = std::unordered_map<Key, Evaluation, Low>;
  static constexpr int64_t kNone = -1;

  static Key key_of(int64_t density, const float* particle, int64_t dim);
  static std::vector<Key> keys_of(int64_t density, const float* particles, int64_t count, int64_t dim);

  // Fills in what is known and returns the indices of the other particles.
  std::vector<int64_t> recall(const std::vector<Key>& keys, double* log_likelihood, float* grad) const;
  // Of some particles of a call; returns as network_log_likelihood does.
  int64_t compute(const std::vector<int64_t>& some, const NetworkSpec& spec, const Batch& batch, int64_t count,
                  const float* particles, double* log_likelihood, float* grad);
  // Takes the results of a call in, those of `fresh` being new.
  void remember(const std::vector<Key>& keys, const std::vector<int64_t>& fresh, const double* log_likelihood,
                const float* grad);
  const Evaluation* find(const Key& key, bool with_grad) const;
  void make_room(int64_t count, int64_t dim);
  void drop(Population& population);
  void clear();
  float* gradient(int64_t slot) const { return grads_.get() + slot * dim_; }

  std::mutex mutex_;
  Population known_, latest_;
  int64_t run_ = 0, usual_run_ = 0;  // calls in a row that knew nothing: so far, and in the last run that ended
  int64_t dim_ = 0, room_ = 0, computed_ = 0;  // room_: particles of a population
  Buffer<float> grads_;                        // [2 room_, dim_], from the first gradient on
  std::vector<int64_t> free_;                  // slots of it
};

}  // namespace fastsmc::cpu
