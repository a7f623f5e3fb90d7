#include "cpu/threads.h"

#include <omp.h>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastsmc::cpu {
namespace {

bool forked = false;

#if defined(__unix__) || defined(__APPLE__)
// at load, so that it also knows of pools that others, such as torch, have made in the parent
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

int available_threads() {
  return forked ? 1 : omp_get_max_threads();
}

}  // namespace fastsmc::cpu
