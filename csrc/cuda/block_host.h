// The block of the host twin; block.h says what it offers. It does late what a device may do late, and keeps every
// piece of shared memory apart, where a sanitizer sees what is beyond its end.
#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "common/plain_floats.h"
#include "cuda/block.h"

namespace fastsmc::cuda {

using Stream = void*;  // of no meaning here

// Whether blocks and threads run from the last to the first: what depends on their order shows.
inline bool backwards = false;

template <int kThreadsOfBlock>
class HostBlock {
 public:
  static constexpr int kThreads = kThreadsOfBlock;
  static_assert(kThreads % kWarp == 0, "a block is made of whole warps");

  template <class T>
  class Private {
   public:
    using Value = T;
    T& operator[](int thread) { return values_[static_cast<size_t>(thread)]; }
    const T& operator[](int thread) const { return values_[static_cast<size_t>(thread)]; }

   private:
    std::array<T, kThreads> values_;
  };

  HostBlock(int64_t index, int64_t grid, size_t shared_bytes) : index_(index), grid_(grid), left_(shared_bytes) {}

  int64_t index() const { return index_; }
  int64_t grid() const { return grid_; }

  template <class Function>
  void each(const Function& function) const {
    for (int i = 0; i < kThreads; ++i) function(backwards ? kThreads - 1 - i : i);
  }

  void sync() const {}

  template <class T>
  T* shared(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (shared_size<T>(count) > left_) throw std::logic_error("a kernel takes more shared memory than it asked for");
    left_ -= shared_size<T>(count);
    pieces_.emplace_back(new unsigned char[bytes]);
    memset(pieces_.back().get(), 0xFF, bytes);
    return reinterpret_cast<T*>(pieces_.back().get());
  }

  template <class T>
  Private<T> shuffle_xor(const Private<T>& p, int mask) const {
    Private<T> other;
    each([&](int thread) { other[thread] = p[thread ^ mask]; });
    return other;
  }

  template <class T>
  Private<T> shuffle_up(const Private<T>& p, int distance) const {
    Private<T> other;
    each([&](int thread) { other[thread] = p[thread % kWarp < distance ? thread : thread - distance]; });
    return other;
  }

  template <class T>
  Private<T> shuffle_from(const Private<T>& p, int lane) const {
    Private<T> other;
    each([&](int thread) { other[thread] = p[thread / kWarp * kWarp + lane]; });
    return other;
  }

  template <class T>
  T uniform(const Private<T>& p) const {
    each([&](int thread) {
      if (memcmp(&p[thread], &p[0], sizeof(T)) != 0) throw std::logic_error("threads differ where all are alike");
    });
    return p[0];
  }

  void copy_async(void* to, const void* from, int size) {
    const uintptr_t bits = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if ((size != 4 && size != 8 && size != 16) || bits % static_cast<uintptr_t>(size) != 0)
      throw std::logic_error("an asynchronous copy is of 4, 8 or 16 aligned bytes");
    copies_.back().push_back({to, from, size});
  }
  void copy_commit() { copies_.emplace_back(); }

  template <int kGroups>
  void copy_wait() {
    while (copies_.size() > kGroups + 1) {  // the last is not committed
      for (const Copy& copy : copies_.front()) memcpy(copy.to, copy.from, static_cast<size_t>(copy.size));
      copies_.pop_front();
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int size;
  };

  int64_t index_, grid_;
  size_t left_;
  std::vector<std::unique_ptr<unsigned char[]>> pieces_;
  std::deque<std::vector<Copy>> copies_{1};
};

inline void atomic_min(int64_t* address, int64_t value) {
  if (value < *address) *address = value;
}

inline void atomic_add(int32_t* address, int32_t value) {
  *address += value;
}
inline void atomic_add(int64_t* address, int64_t value) {
  *address += value;
}

template <class Kernel>
void launch(const Kernel& kernel, int64_t grid, Stream) {
  const PlainFloats plain;
  checked_grid(grid);
  for (int64_t i = 0; i < grid; ++i) {
    HostBlock<Kernel::kThreads> block(backwards ? grid - 1 - i : i, grid, kernel.shared_bytes());
    kernel(block);
  }
}

inline void fill_zero(void* to, size_t bytes, Stream) {
  memset(to, 0, bytes);
}

}  // namespace fastsmc::cuda
