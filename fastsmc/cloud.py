"""The particles, and all that is carried for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsmc import arrays, ops, random
from fastsmc.annealing import Target
from fastsmc.posterior import Posterior


class DegenerateError(RuntimeError):
    """Every particle has a density of zero or one that is not finite; ``result`` holds the last good state."""

    result = None


class Data:
    """The data in the order in which they are brought in: a permutation that is a function of the seed.

    x becomes float32 [N, inputs]; y what the likelihood takes.
    """

    def __init__(self, x: Any, y: Any, posterior: Posterior, seed: int) -> None:
        inputs = arrays.read(x, "x")[0]
        targets = posterior.likelihood.targets(arrays.read(y, "y")[0], posterior.network.num_outputs)
        if len(inputs) != len(targets):
            raise ValueError(f"x has {len(inputs)} rows, but y has {len(targets)}; they must agree")
        if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
            row = int(np.argmin(np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)))
            raise ValueError(f"x[{row}] holds NaN or infinity; every feature must be a finite number")
        u = random.uniform((1, len(inputs)), seed=seed, stream=random.Stream.ORDER, backend=posterior.backend)[0]
        order = np.argsort(u, kind="stable")
        self.x = np.ascontiguousarray(inputs[order].reshape(len(inputs), -1), np.float32)
        self.y = targets[order]

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch; a view, not a copy."""
        return self.x[start:stop], self.y[start:stop]

    def batch(self, target: Target) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a target."""
        return self.rows(target.start, target.stop)


@dataclass
class Cloud:
    """Weighted particles with the log-likelihood of the current batch, unscaled, its gradient, and the log prior.

    Attributes
    ----------
    particles, grad
        float32 [P, d]; ``grad`` is None where the move needs none.
    log_likelihood, log_prior, log_weights
        float64 [P]; the weights ``exp(log_weights)`` sum to one.
    ess
        Effective sample size of the weights.
    """

    posterior: Posterior
    particles: np.ndarray
    grad: np.ndarray | None
    log_likelihood: np.ndarray
    log_prior: np.ndarray
    log_weights: np.ndarray
    ess: float
    evaluations: int = 0
    """Data points for which every particle's likelihood was computed, so far."""
    spare: tuple[np.ndarray, ...] = ()
    """Memory of a trajectory: particles, gradient and momentum; pages are slow to come by."""

    @classmethod
    def from_prior(cls, posterior: Posterior, num_particles: int, seed: int, with_grad: bool) -> Cloud:
        """Equally weighted draws from the prior, which have seen no data."""
        particles = posterior.sample_prior(num_particles, seed)
        return cls(
            posterior,
            particles,
            np.zeros_like(particles) if with_grad else None,
            np.zeros(num_particles),
            posterior.log_prior(particles),
            np.full(num_particles, -np.log(num_particles)),
            float(num_particles),
        )

    def log_density(self, target: Target) -> np.ndarray:
        """Unnormalised log density of a target that uses the current batch, [P]."""
        return self.log_prior + target.power * self.log_likelihood

    def evaluate(self, particles: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-likelihood of a batch, with its gradient where this cloud carries one."""
        self.evaluations += len(x)
        if self.grad is None:
            return self.posterior.log_likelihood(particles, x, y), None
        return self.posterior.log_likelihood_and_grad(particles, x, y)

    def trajectory(self, x: np.ndarray, y: np.ndarray, **plan: Any) -> tuple[np.ndarray, np.ndarray, ops.Trajectory]:
        """Where a leapfrog trajectory with fresh momentum takes every particle, and the gradient there."""
        self.evaluations += len(x) * plan["num_steps"]
        self.spare = self.spare or tuple(np.empty_like(self.particles) for _ in range(3))
        particles, grad, momentum = self.spare
        np.copyto(particles, self.particles)
        np.copyto(grad, self.grad)
        return particles, grad, self.posterior.trajectory(particles, momentum, grad, x, y, refresh=0.0, **plan)

    def observe(self, data: Data, previous: Target, target: Target) -> None:
        """Bring the likelihood from the batch of one target to that of the next; nested batches cost the new rows."""
        nested = target.start == previous.start and target.stop >= previous.stop
        start = previous.stop if nested else target.start
        if start == target.stop:
            return
        log_likelihood, grad = self.evaluate(self.particles, *data.rows(start, target.stop))
        self.log_likelihood = self.log_likelihood + log_likelihood if nested else log_likelihood
        if grad is not None:
            self.grad = np.add(self.grad, grad, out=grad) if nested else grad

    def reweight(self, increment: np.ndarray) -> tuple[float, int]:
        """Multiply the weights by ``exp(increment)``; a particle whose density is not finite gets weight zero.

        Returns the log of the mean increment under the old weights, which is the step of the evidence, and how many
        particles were lost.
        """
        log_weights = self.log_weights + increment
        bad = ~(log_weights < np.inf) | ~np.isfinite(self.log_prior + self.log_likelihood)
        lost = np.count_nonzero(bad & (self.log_weights > -np.inf))
        log_weights[bad] = -np.inf
        if np.all(np.isneginf(log_weights)):
            raise DegenerateError(
                f"all {len(log_weights)} particles have a density that is zero or not finite; "
                "the data may hold NaN, or the step size may be too large"
            )
        _, log_sum, ess = ops.normalize_log_weights(log_weights, backend=self.posterior.backend)
        self.log_weights, self.ess = log_weights - log_sum, float(ess)
        return float(log_sum), lost

    def conditional_ess(self, increment: np.ndarray) -> float:
        """Conditional effective sample size of increments, as a fraction of one: (sum W v)^2 / sum W v^2."""
        usable = np.where(np.isnan(increment), -np.inf, increment)
        first, second = (
            ops.normalize_log_weights(self.log_weights + power * usable, backend=self.posterior.backend).log_sum
            for power in (1, 2)
        )
        return float(np.exp(2 * first - second))

    def resample(self, scheme: str, seed: int, iteration: int) -> int:
        """Replace the particles by equally weighted draws of them; returns the number of distinct ancestors."""
        count, on = len(self.particles), {"backend": self.posterior.backend}
        u = random.uniform((1, count), seed=seed, iteration=iteration, stream=random.Stream.RESAMPLING, **on)[0]
        ancestors = ops.resample(self.log_weights, u if ops.SCHEMES[scheme] else u[0], scheme=scheme, **on)
        ancestors = ops.permute_ancestors(ancestors, **on)
        state = [self.particles, self.log_likelihood, self.log_prior]
        state += [] if self.grad is None else [self.grad]
        ops.gather_particles(tuple(state), ancestors, out=tuple(state), **on)
        self.log_weights = np.full(count, -np.log(count))
        self.ess = float(count)
        return len(np.unique(ancestors))
