// Aligned memory that is not initialised, on huge pages where it is large: packed batches are streamed, and a page walk
// for every 4 KiB costs more than the reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/sizes.h"

namespace fastsmc::cpu {

inline size_t checked_bytes(size_t count, size_t each) {
  return static_cast<size_t>(checked_product({static_cast<int64_t>(count), static_cast<int64_t>(each)}));
}

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) {
    const size_t bytes = checked_bytes(count, sizeof(T)), align = bytes < kHugePage ? kCacheLine : kHugePage;
    memory_ = std::unique_ptr<T[], Free>(static_cast<T*>(::operator new(bytes, std::align_val_t{align})), Free{align});
#if defined(__linux__)
    if (align == kHugePage) madvise(memory_.get(), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  }
  T* get() const { return memory_.get(); }

 private:
  static constexpr size_t kCacheLine = 64, kHugePage = size_t{2} << 20;

  struct Free {
    size_t align = kCacheLine;
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{align}); }
  };
  std::unique_ptr<T[], Free> memory_;
};

// Arrays that last for one call, in a block that the calling thread keeps for its next: the system clears every page
// that it hands out, which would take a tenth of the time of a small gradient. One at a time on a thread.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (block().size > kKept) block() = {};
  }

  // To be called for every array before the first is used; where it lies is known when all are.
  template <class T>
  size_t reserve(size_t count) {
    const size_t at = size_;
    size_ += (checked_bytes(count, sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return at;
  }
  template <class T>
  T* at(size_t place) const {
    if (block().size < size_) block() = {size_, Buffer<char>(size_)};
    return reinterpret_cast<T*>(block().memory.get() + place);
  }

 private:
  static constexpr size_t kAlign = 64, kKept = size_t{64} << 20;

  struct Block {
    size_t size = 0;
    Buffer<char> memory;
  };
  static Block& block() {
    thread_local Block kept;
    return kept;
  }
  size_t size_ = 0;
};

}  // namespace fastsmc::cpu
