"""For particles: its resampling schemes by our engines, under names of their own.

Importing this module registers ``fastsmc_systematic``, ``fastsmc_stratified``, ``fastsmc_multinomial`` and
``fastsmc_residual``; ``particles.SMC(..., resampling="fastsmc_systematic")`` uses them. Uniform numbers are NumPy's
global ones, as particles' own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from particles import resampling as rs

from fastsmc import ops


def _register(scheme: str) -> Callable[..., np.ndarray]:
    def ancestors(W: np.ndarray, M: int) -> np.ndarray:
        u = np.random.rand(M) if ops.SCHEMES[scheme] else np.random.rand()  # noqa: NPY002  (the library's generator)
        return ops.resample(W, u, scheme, log=False, num_samples=M)

    ancestors.__name__ = ancestors.__qualname__ = f"fastsmc_{scheme}"
    ancestors.__doc__ = f"{scheme.capitalize()} resampling by fastsmc: M ancestors of weights W, int64."
    return rs.resampling_scheme(ancestors)


systematic, stratified, multinomial, residual = map(_register, ops.SCHEMES)


def replacements() -> dict[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """What `accelerate` replaces: the resampling schemes, by whatever name they are called."""
    return {rs.rs_funcs[scheme]: globals()[scheme] for scheme in ops.SCHEMES}
