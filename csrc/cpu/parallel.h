// Every parallel region of the engine, and loops over independent pieces of work, on all threads where the work is
// worth waking them.
#pragma once

#include <cstdint>
#include <exception>

#include "common/plain_floats.h"
#include "cpu/threads.h"

namespace fastsmc::cpu {

// Below this many elements an op runs on the calling thread, without entering a parallel region at all.
constexpr int64_t kParallelFrom = 1 << 15;

template <class Work>
void on_threads(int count, const Work& work) {
#pragma omp parallel num_threads(count)
  {
    const PlainFloats plain;
    work();
  }
}

// What work throws on any of the threads, for want of memory, is thrown here: no exception may leave a parallel region.
template <class Work>
void for_each(int64_t count, bool parallel, const Work& work) {
  if (!parallel || count < 2) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  std::exception_ptr failure;
  on_threads(available_threads(), [&] {
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < count; ++i) {
      try {
        work(i);
      } catch (...) {
#pragma omp critical(fastsmc_failure)
        failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fastsmc::cpu
