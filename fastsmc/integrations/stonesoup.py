"""For Stone Soup: its systematic resampler, by our engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from stonesoup.resampler import particle
from stonesoup.types.state import ParticleState

from fastsmc import ops


class SystematicResampler(particle.SystematicResampler):
    """Draws by NumPy's global generator, as Stone Soup's own; to be given to an updater, or to its ``ESSResampler``."""

    def resample(self, particles: Any, nparts: int | None = None) -> ParticleState:
        """Particles, as many as there are or ``nparts``, of equal weights."""
        if not isinstance(particles, ParticleState):
            particles = ParticleState(None, particle_list=particles)
        size = len(particles) if nparts is None else nparts
        log_weights = np.asarray(particles.log_weight, np.float64)
        u = np.random.random()  # noqa: NPY002  (the library's generator)
        resampled = particles[ops.resample(log_weights, u, num_samples=size)]
        resampled.log_weight = np.full(size, -np.log(size))
        return resampled


def replacements() -> dict[type, type]:
    """What `accelerate` replaces."""
    return {particle.SystematicResampler: SystematicResampler}
