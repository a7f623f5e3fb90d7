"""For blackjax: its resampling functions, and the log-likelihood of a network, by the CPU engine inside of jax.jit.

>>> likelihood = bnn_log_likelihood(net, x, y)
>>> blackjax.tempered_smc(log_prior, likelihood, hmc.build_kernel(), hmc.init, parameters, systematic, 5)
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
        return resample(weights, u, scheme, log=False, num_samples=num_samples)

    resampling.__name__ = resampling.__qualname__ = scheme
    return resampling


systematic, stratified, multinomial, residual = map(_as_blackjax, SCHEMES)


def replacements() -> dict[Callable[..., Array], Callable[..., Array]]:
    """What `accelerate` replaces: the resampling functions."""
    from blackjax.smc import resampling

    return {getattr(resampling, scheme): globals()[scheme] for scheme in SCHEMES}
