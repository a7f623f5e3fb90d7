#include "cuda/network.h"

#include <algorithm>
#include <cmath>

#include "cuda/sums.h"

namespace fastsmc::cuda {
namespace {

constexpr int64_t kSlice = 4096;     // samples whose gradients are summed in one go
constexpr int64_t kMostParts = 128;  // sums over slices in scratch memory, each as large as the gradient

// Places in shared memory for tiles of so many samples; false where the network is of another kind.
bool place(const NetworkSpec& spec, int tile, bool with_gradient, DenseNetwork& network) {
  constexpr int64_t kWidest = 4096;  // far beyond any shared memory
  if (spec.layers > kMostLayers) return false;
  network = {};
  network.layers = spec.layers;
  network.tile = tile;
  const auto take = [&](int floats) {
    const int at = network.floats;
    network.floats += floats;
    return at;
  };
  for (int l = 0; l < spec.layers; ++l) {
    const Layer& layer = spec.layer[l];
    const bool last = l == spec.layers - 1;
    if (!layer.dense() || layer.inputs() > kWidest || layer.outputs() > kWidest) return false;
    if (last && layer.activation != Activation::kIdentity) return false;
    DenseLayer& place = network.layer[l];
    place.inputs = static_cast<int>(layer.inputs());
    place.outputs = static_cast<int>(layer.outputs());
    place.activation = layer.activation;
    place.begin = network.dim;
    network.dim += layer.num_params();
    place.weights = take(place.rows() * place.stride());
    place.gradient = with_gradient ? take(place.rows() * place.stride()) : 0;
    place.biases = take(place.rows());
    place.values = take(tile * place.out_stride());
    place.deltas = last ? place.values : with_gradient ? take(tile * place.out_stride()) : 0;
  }
  network.x = take(2 * tile * network.layer[0].stride());
  return true;
}

// The largest tile that a batch fills and a block has room for, or 0. With its gradient always, so that the tile does
// not depend on what is asked for.
int tile_of(const NetworkSpec& spec, int64_t samples) {
  const size_t room = shared_memory();
  for (int tile = kMostTile; tile >= 16; tile /= 2) {
    DenseNetwork network;
    if (!place(spec, tile, true, network)) return 0;
    const size_t bytes = kScratch + shared_size<float>(network.floats);
    if (bytes <= room && (tile == 16 || samples > tile / 2)) return tile;
  }
  return 0;
}

// What all evaluations of a batch share.
template <class Operands>
Evaluate<Operands> evaluation(const NetworkSpec& spec, const Batch& batch, bool with_gradient) {
  Evaluate<Operands> kernel{};
  place(spec, tile_of(spec, batch.samples), with_gradient, kernel.network);
  kernel.batch = batch;
  kernel.likelihood = spec.likelihood;
  kernel.noise = spec.noise;
  if (spec.likelihood == Likelihood::kGaussian) {
    constexpr double kTwoPi = 6.283185307179586;
    const double variance = static_cast<double>(spec.noise) * spec.noise;
    kernel.constant = -.5 * static_cast<double>(spec.outputs()) * std::log(kTwoPi * variance);
  }
  kernel.slice = kSlice;
  kernel.slices = network_slices(batch.samples);
  return kernel;
}

// work(the operands of a precision), a type of cuda/product.h.
template <class Work>
void with_operands(Precision precision, const Work& work) {
  switch (precision) {
    case Precision::kHighest:
      return work(Highest{});
    case Precision::kHigh:
      return work(High{});
    case Precision::kMedium:
      return work(Medium{});
  }
}

}  // namespace

int64_t network_slices(int64_t samples) {
  return (samples + kSlice - 1) / kSlice;
}

bool network_fits(const NetworkSpec& spec, int64_t samples) {
  return tile_of(spec, samples) > 0;
}

void network_log_likelihood(const Queue& queue, const NetworkSpec& spec, const Batch& batch, int64_t count,
                            const float* particles, double* totals, float* gradients, int64_t* status) {
  with_operands(spec.precision, [&](auto operands) {
    auto kernel = evaluation<decltype(operands)>(spec, batch, gradients != nullptr);
    kernel.particles = particles;
    kernel.status = status;
    kernel.totals = totals;
    kernel.gradients = gradients;
    const auto stream = static_cast<Stream>(queue.stream);
    const int64_t slices = kernel.slices, size = count * kernel.network.dim;
    if (slices == 1) return launch(kernel, count, stream);
    const int64_t parts = std::min(slices, kMostParts);
    double* const part_totals = queue.scratch<double>(parts * count);
    float* const part_gradients = gradients == nullptr ? nullptr : queue.scratch<float>(parts * size);
    // the first part is that of all slices before, if there are any
    for (int64_t sums = 0; kernel.before < slices; kernel.before += kernel.slices, sums = 1) {
      kernel.slices = std::min(parts - sums, slices - kernel.before);
      kernel.totals = part_totals + sums * count;
      if (gradients != nullptr) kernel.gradients = part_gradients + sums * size;
      launch(kernel, count * kernel.slices, stream);
      const bool last = kernel.before + kernel.slices == slices;
      const int64_t summed = sums + kernel.slices;
      add_slices(part_totals, last ? totals : part_totals, summed, count, stream);
      if (gradients != nullptr) add_slices(part_gradients, last ? gradients : part_gradients, summed, size, stream);
    }
  });
}

void network_outputs(const Queue& queue, const NetworkSpec& spec, const Batch& batch, int64_t count,
                     const float* particles, float* outputs) {
  with_operands(spec.precision, [&](auto operands) {
    auto kernel = evaluation<decltype(operands)>(spec, batch, false);
    kernel.particles = particles;
    kernel.outputs = outputs;
    launch(kernel, count * kernel.slices, static_cast<Stream>(queue.stream));
  });
}

void network_trajectory(const Queue& queue, const NetworkSpec& spec, const Batch& batch, int64_t count,
                        const Path& path, double* totals, int64_t* status) {
  with_operands(spec.precision, [&](auto operands) {
    auto kernel = evaluation<decltype(operands)>(spec, batch, true);
    kernel.particles = path.particles;
    kernel.totals = totals;
    kernel.status = status;
    kernel.path = path;
    const float persistence = path.refreshment.persistence;
    kernel.plan = {path.size, path.size, path.likelihood_scale, persistence, deviation_of(persistence)};
    launch(kernel, count, static_cast<Stream>(queue.stream));
  });
}

}  // namespace fastsmc::cuda
