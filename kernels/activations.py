"""Activations by what is kept of a hidden layer: one array, from which value and slope are had again.

========  ======================  ==============
code      kept                    slope
========  ======================  ==============
identity  z                       1
relu      max(z, 0)               1 where positive
tanh      tanh(z)                 1 - tanh(z)^2
gelu      z                       from z
silu      z                       from z
========  ======================  ==============

The codes are the places in ``fastsmc.networks.ACTIVATIONS``.
"""

import triton
import triton.language as tl

from fastsmc.kernels.elementary import normal_density_and_cdf, sigmoid, tanh

IDENTITY = tl.constexpr(0)
RELU = tl.constexpr(1)
TANH = tl.constexpr(2)
GELU = tl.constexpr(3)
SILU = tl.constexpr(4)


@triton.jit
def kept_of(z, ACTIVATION: tl.constexpr):
    """What is stored of pre-activations z."""
    if ACTIVATION == RELU:
        z = tl.where(z < 0, 0.0, z)  # NaN stays NaN
    elif ACTIVATION == TANH:
        z = tanh(z)
    return z


@triton.jit
def value_of(kept, ACTIVATION: tl.constexpr):
    """The activation itself; nothing is computed where it is what was kept."""
    if ACTIVATION == GELU:
        z = kept.to(tl.float32)
        kept = z * normal_density_and_cdf(z)[1]
    elif ACTIVATION == SILU:
        z = kept.to(tl.float32)
        kept = z * sigmoid(z)
    return kept


@triton.jit
def times_slope(delta, kept, ACTIVATION: tl.constexpr):
    """The gradient with respect to z, from that with respect to the activation."""
    kept = kept.to(tl.float32)
    if ACTIVATION == RELU:
        delta = delta * tl.where(kept > 0, 1.0, 0.0)
    elif ACTIVATION == TANH:
        delta = delta * tl.fma(-kept, kept, 1.0)
    elif ACTIVATION == GELU:
        density, cdf = normal_density_and_cdf(kept)
        delta = delta * tl.fma(kept, density, cdf)
    elif ACTIVATION == SILU:
        s = sigmoid(kept)
        delta = delta * (s * tl.fma(kept, 1 - s, 1.0))
    return delta
