"""For pfjax: a resampler of its particle filters, systematic, by our engine inside of jax.jit."""

from __future__ import annotations

from typing import Any

import jax

from fastsmc.integrations.jax import resample

Array = Any


def resample_systematic(key: Array, x_particles_prev: Any, logw: Array) -> dict[str, Any]:
    """Particles and their ancestors [P], by unnormalised log weights [P]: as pfjax's resamplers return them."""
    ancestors = resample(logw, jax.random.uniform(key, (), logw.dtype))
    return {"x_particles": jax.tree.map(lambda leaf: leaf[ancestors], x_particles_prev), "ancestors": ancestors}
