"""For cuthbert: its systematic resampling, by our engine inside of jax.jit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from fastsmc.integrations.jax import resample

Array = Any


@partial(jax.jit, static_argnames="n")
def resampling(key: Array, logits: Array, positions: Any, n: int) -> tuple[Array, Array, Any]:
    """Ancestors [n] of log weights [N], the log weights afterwards, and the positions of the ancestors."""
    logits = jax.numpy.asarray(logits)
    ancestors = resample(logits, jax.random.uniform(key, (), logits.dtype), num_samples=n)
    gathered = jax.tree.map(lambda leaf: leaf[ancestors], positions)
    return ancestors, jax.numpy.zeros(n, logits.dtype), gathered


def replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `accelerate` replaces."""
    from cuthbertlib.resampling import systematic

    return {systematic.resampling: resampling}
