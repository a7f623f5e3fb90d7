#include "cpu/threads.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
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

constexpr int kSpare = 8;  // one of so many is left to others where the system runs out of threads

// The largest number that was asked for, and how many threads that gave.
std::atomic<int> wanted_most{1}, given{1};

// libgomp ends the process where it cannot start a thread of its pool: as many are started here first, side by side.
void try_out(int wanted) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> trying(one_at_a_time);
  if (wanted <= wanted_most) return;
  std::mutex all_started;
  std::vector<std::thread> threads;
  {
    const std::lock_guard<std::mutex> hold(all_started);
    try {
      threads.reserve(static_cast<size_t>(wanted));
      while (static_cast<int>(threads.size()) + 1 < wanted)
        threads.emplace_back([&] { const std::lock_guard<std::mutex> wait(all_started); });
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
  }
  for (std::thread& thread : threads) thread.join();
  const int started = static_cast<int>(threads.size()) + 1;
  given = started < wanted ? std::max(1, started - started / kSpare - 1) : wanted;
  wanted_most = wanted;
}

}  // namespace

int available_threads() {
  if (forked) return 1;
  const int wanted = omp_get_max_threads();
  if (wanted > wanted_most) try_out(wanted);
  return std::min<int>(wanted, given);
}

}  // namespace fastsmc::cpu
