// Aligned memory that is not initialised, on huge pages where it is large: packed batches are streamed, and a page walk
// for every 4 KiB costs more than the reads.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastsmc::cpu {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) {
    const size_t bytes = count * sizeof(T), align = bytes < kHugePage ? kCacheLine : kHugePage;
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

}  // namespace fastsmc::cpu
