"""For pocoMC: its systematic resampling, by our engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastsmc import ops


def systematic_resample(size: int, weights: np.ndarray, random_state: int | None = None) -> np.ndarray:
    """Indices [size] of weights [N], by a number of NumPy's global generator, as pocoMC's own."""
    if random_state is not None:
        np.random.seed(random_state)  # noqa: NPY002  (the library's generator)
    return ops.systematic(np.asarray(weights, np.float64), np.random.random(), size)  # noqa: NPY002


def replacements() -> dict[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """What `accelerate` replaces."""
    from pocomc import tools

    return {tools.systematic_resample: systematic_resample}
