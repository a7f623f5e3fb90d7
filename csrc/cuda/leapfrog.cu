#include "cuda/leapfrog.h"

#include "cuda/ops.h"
#include "cuda/sums.h"

namespace fastsmc::cuda {

void leapfrog(const Queue& queue, const State& state, float kick, float drift, float likelihood_scale,
              const Refresh* refresh, double* energies) {
  const auto stream = static_cast<Stream>(queue.stream);
  const float persistence = refresh == nullptr ? 0.f : refresh->persistence;
  auto* const plan = queue.scratch<Plan>(1);
  launch(Store<Plan>{plan, {kick, drift, likelihood_scale, persistence, deviation_of(persistence)}}, 1, stream);
  Names* names = nullptr;
  if (refresh != nullptr) {
    names = queue.scratch<Names>(1);
    launch(Store<Names>{names, refresh->names}, 1, stream);
  }
  const int64_t runs = (state.dim + Leapfrog::kRun - 1) / Leapfrog::kRun, width = 3 * state.count;
  auto* const of_runs = runs == 1 ? energies : queue.scratch<double>(runs * width);
  launch(Leapfrog{state, plan, names, runs, of_runs}, runs * state.count, stream);
  if (runs > 1) add_slices(of_runs, energies, runs, width, stream);
}

}  // namespace fastsmc::cuda
