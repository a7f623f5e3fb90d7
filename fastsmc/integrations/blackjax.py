"""For blackjax: its resampling functions, and the log-likelihood of a network, by the CPU engine inside of jax.jit.

>>> blackjax.tempered_smc(log_prior, bnn_log_likelihood(net, x, y), hmc.build_kernel(), hmc.init, parameters, systematic, 5)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fastsmc.integrations.jax import log_likelihood as bnn_log_likelihood
from fastsmc.integrations.jax import resample
from fastsmc.ops import SCHEMES

__all__ = ["bnn_log_likelihood", "multinomial", "residual", "stratified", "systematic"]

Array = Any


def _as_blackjax(scheme: str) -> Callable[[Array, Array, int], Array]:
    def resampling(rng_key: Array, weights: Array, num_samples: int) -> Array:
        """Indices [num_samples] of particles, drawn by weights [N]."""
        shape = (num_samples,) if SCHEMES[scheme] else ()
        u = jax.random.uniform(rng_key, shape, weights.dtype)
        return resample(weights, u, scheme, num_samples, log=False)

    resampling.__name__ = resampling.__qualname__ = scheme
    return resampling


systematic, stratified, multinomial, residual = map(_as_blackjax, SCHEMES)
