#include "cuda/deliver.h"

#include "cuda/ops.h"

namespace fastsmc::cuda {

int64_t* new_status(const Queue& queue) {
  auto* const status = queue.scratch<int64_t>(1);
  launch(Store<int64_t>{status, kFine}, 1, static_cast<Stream>(queue.stream));
  return status;
}

template <class From, class To>
void deliver(const Queue& queue, int64_t n, const From* from, To* to, const int64_t* status) {
  constexpr int64_t kEntries = Deliver<From, To>::kThreads * Deliver<From, To>::kItems;
  if (n == 0) return;
  launch(Deliver<From, To>{from, to, n, status}, (n + kEntries - 1) / kEntries, static_cast<Stream>(queue.stream));
}

#define FASTSMC_DELIVER(From, To) template void deliver(const Queue&, int64_t, const From*, To*, const int64_t*)
FASTSMC_DELIVER(float, float);
FASTSMC_DELIVER(float, double);
FASTSMC_DELIVER(double, float);
FASTSMC_DELIVER(double, double);
FASTSMC_DELIVER(int32_t, int64_t);
FASTSMC_DELIVER(int64_t, int32_t);
FASTSMC_DELIVER(int64_t, int64_t);
#undef FASTSMC_DELIVER

}  // namespace fastsmc::cuda
