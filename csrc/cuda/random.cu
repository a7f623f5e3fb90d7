#include "cuda/random.h"

namespace fastsmc::cuda {
namespace {

template <class Kind>
void fill(const Queue& queue, typename Kind::Number* out, int64_t slots, int64_t numbers, const Names& names) {
  const int64_t runs = (numbers + Fill<Kind>::kRun - 1) / Fill<Kind>::kRun;
  launch(Fill<Kind>{out, numbers, runs, names}, slots * runs, static_cast<Stream>(queue.stream));
}

}  // namespace

void philox_integers(const Queue& queue, uint32_t* out, int64_t slots, int64_t numbers, const Names& names) {
  fill<Integers>(queue, out, slots, numbers, names);
}

void uniform(const Queue& queue, double* out, int64_t slots, int64_t numbers, const Names& names) {
  fill<Uniform53>(queue, out, slots, numbers, names);
}

void standard_normal(const Queue& queue, float* out, int64_t slots, int64_t numbers, const Names& names) {
  fill<Normals>(queue, out, slots, numbers, names);
}

}  // namespace fastsmc::cuda
