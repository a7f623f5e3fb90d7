// Whether a table of layers from outside is a network that the engines can compute. For the host.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "common/network.h"
#include "common/sizes.h"

namespace fastsmc {

constexpr int64_t kMostUnits = int64_t{1} << 31;   // of a layer in any direction
constexpr int64_t kMostPool = 16;                  // the place of a maximum is kept in a byte
constexpr int64_t kMostPixels = int64_t{1} << 25;  // of a padded image, whose offsets in 64 samples fit 32 bits

// Throws std::invalid_argument or std::length_error unless all is in range and each layer reads what the one before
// writes.
inline void check_network(const NetworkSpec& spec) {
  const auto require = [](bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
  };
  const auto within = [](int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; };
  require(within(spec.layers, 1, kMaxLayers), "a network must have 1 to 64 layers");
  require(within(static_cast<int64_t>(spec.precision), 0, kPrecisions - 1), "the code of the precision is unknown");
  require(within(static_cast<int64_t>(spec.likelihood), 0, static_cast<int64_t>(Likelihood::kPoisson)),
          "the code of the likelihood is unknown");
  int64_t read = 0;
  for (int l = 0; l < spec.layers; ++l) {
    const Layer& layer = spec.layer[l];
    require(within(static_cast<int64_t>(layer.kind), 0, static_cast<int64_t>(LayerKind::kConvolution)),
            "a layer is of an unknown kind");
    require(within(static_cast<int64_t>(layer.activation), 0, static_cast<int64_t>(Activation::kSilu)),
            "a layer has an unknown activation");
    for (const int64_t size : {layer.in_channels, layer.in_height, layer.in_width, layer.out_channels, layer.kernel})
      require(within(size, 1, kMostUnits), "a layer has a size that is not in [1, 2^31]");
    require(within(layer.padding, 0, kMostUnits), "a layer has a padding that is not in [0, 2^31]");
    require(within(layer.pool, 1, kMostPool), "a layer pools by a number that is not in [1, 16]");
    require(!layer.dense() || (layer.kernel == 1 && layer.padding == 0 && layer.pool == 1),
            "a dense layer has a filter, padding or pooling");
    require(std::min(layer.height(), layer.width()) >= layer.pool, "a layer has a filter larger than its image");
    if (!layer.dense())
      require(checked_product({layer.in_channels, layer.in_height + 2 * layer.padding,
                               layer.in_width + 2 * layer.padding}) < kMostPixels,
              "a convolution reads images of 2^25 numbers or more");
    checked_product({layer.out_channels, layer.height(), layer.width()});
    checked_product({layer.out_channels, checked_product({layer.in_channels, layer.in_height, layer.in_width}) + 1});
    checked_product({layer.out_channels, checked_product({layer.in_channels, layer.kernel, layer.kernel}) + 1});
    require(l == 0 || layer.inputs() == read, "a layer does not read what the one before it writes");
    read = layer.outputs();
  }
}

}  // namespace fastsmc
