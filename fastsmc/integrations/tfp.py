"""For TensorFlow Probability on JAX: resampling functions of its SMC, by our engine inside of jax.jit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fastsmc.integrations.jax import resample
from fastsmc.ops import SCHEMES

Array = Any


def _as_tfp(scheme: str) -> Callable[..., Array]:
    def resampling(
        log_probs: Array,
        event_size: int,
        sample_shape: Sequence[int],
        particles_dim: int = 0,
        seed: Array | None = None,
        name: str | None = None,
    ) -> Array:
        """Indices, sample_shape with ``event_size`` samples along ``particles_dim`` of what log_probs has beside it."""
        if seed is None:
            raise ValueError("seed is None; it must be a key of JAX's")
        rows = jnp.moveaxis(jnp.asarray(log_probs), particles_dim, -1)
        shape = (*sample_shape, *rows.shape[:-1])
        drawn = (event_size,) if SCHEMES[scheme] else ()
        u = jax.random.uniform(seed, (*shape, *drawn), rows.dtype)
        indices = resample(jnp.broadcast_to(rows, (*shape, rows.shape[-1])), u, scheme, num_samples=event_size)
        return jnp.moveaxis(indices.astype(jnp.int32), -1, particles_dim)

    resampling.__name__ = resampling.__qualname__ = f"resample_{scheme}"
    return resampling


resample_systematic, resample_stratified = map(_as_tfp, ("systematic", "stratified"))


def replacements() -> dict[Callable[..., Array], Callable[..., Array]]:
    """What `accelerate` replaces."""
    from tensorflow_probability.substrates.jax.experimental import mcmc

    return {mcmc.resample_systematic: resample_systematic, mcmc.resample_stratified: resample_stratified}
