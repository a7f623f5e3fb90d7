"""Persistent sampling: tempered SMC that keeps the particles of all earlier temperatures.

Karamanis and Seljak, "Persistent sampling: enhancing the efficiency of sequential Monte Carlo" (2024, arXiv
2407.20722).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastsmc import ops
from fastsmc.annealing import PRIOR, Target, highest_temperature
from fastsmc.batches import Data
from fastsmc.cloud import Cloud, distinct
from fastsmc.moves import HMC, Draw, Move
from fastsmc.posterior import Posterior
from fastsmc.progress import Stopwatch
from fastsmc.result import History, Result
from fastsmc.sampler import Sampler
from fastsmc.sources import read
from fastsmc.start import Resumption, Start, State
from fastsmc.steps import SEARCH, StepSize


class Component(NamedTuple):
    """A tempered posterior that P particles of the pool were drawn from; its evidence is that of the likelihood."""

    temperature: float
    log_evidence: float


class PersistentSMC(Sampler):
    """Tempered SMC over all the data whose particles persist.

    Every temperature draws P particles from the pool of all earlier ones, moves them and adds them to the pool, which
    is weighted as a sample of the mixture of its targets:

        w_i = pi_t(theta_i) / mean over s < t of (pi_s(theta_i) / Z_s),    Z_t = mean of w_i

    The result holds the pool, [T * P, d], and so does memory, with a gradient each. The weights need no evaluation of
    the likelihood, as long as that of a particle is known for every target; hence tempering, and not data annealing.
    ``log_evidence`` is consistent as P grows, but Z_hat is not unbiased, and no estimate of its variance is known from
    a single run: ``log_evidence_error`` is NaN.

    Parameters
    ----------
    posterior
        Network, prior and likelihood.
    num_particles
        P, at each temperature.
    move
        How the particles move; it must accept or reject; `HMC` unless given. Momentum that a move keeps lasts for the
        moves of one temperature.
    num_iterations
        At most so many temperatures; the run ends when one reaches 1.
    ess
        The next temperature is the highest that leaves the effective sample size of the pool at this multiple of P,
        which may exceed one. The pool starts with P times ``2 * ess``, rounded up, draws from the prior.
    resampling, backend, device, seed
        As for `SMC`.

    Raises
    ------
    ValueError
        If the move does not leave its target invariant, or another argument is out of range.
    """

    def __init__(
        self,
        posterior: Posterior,
        num_particles: int = 64,
        move: Move | None = None,
        num_iterations: int = 60,
        ess: float = 1.0,
        resampling: str = "systematic",
        backend: str | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(posterior, num_particles, move or HMC(), num_iterations, resampling, backend, device, seed)
        if not (math.isfinite(ess) and ess > 0):
            raise ValueError(f"ess is {ess!r}; it must be positive")
        self._check_reversible("persistent sampling")
        self.ess = ess

    def iterate(self, x: Any, y: Any = None, *, weights: Any = None, initial: Any = None) -> Iterator[Result]:
        """Run one temperature at a time; each state is a `Result` that later iterations leave alone."""
        if not (initial is None or isinstance(initial, Resumption)):
            raise ValueError("initial is given; it must be None for PersistentSMC, whose pool starts at the prior")
        x, y = read(x, y)
        posterior = self.posterior_for(x)
        data = Data(x, y, posterior, self.seed, weights=weights)
        state = self._begin(posterior, data) if initial is None else initial.begin(self, posterior, data)
        start, pool, target, step, history, _, first, mixture = state
        mixture, clock = [Component(*component) for component in mixture], Stopwatch(state.seconds)
        _, lost = _reweight(pool, target, mixture)
        result = None
        for iteration in range(first, self.num_iterations):
            # anneal
            previous = target
            if previous.temperature == 1.0:
                return
            if result is not None:
                result.state = None  # which goes on
            target = replace(target, temperature=self._next_temperature(previous.temperature, pool))

            # reweight
            log_evidence, _ = _reweight(pool, target, mixture)
            ess = pool.ess

            # resample
            cloud, ancestors = pool.resample(self.num_particles, self.resampling, self.seed, iteration, keep=True)

            # move
            step.prepare(cloud, data, previous, target, Draw(self.seed, SEARCH))
            for number in self.move.rounds(cloud, target):
                step_size = step.at(target)
                outcome = self.move(cloud, data, target, step_size, Draw(self.seed, iteration, number))
                step.adapt(outcome, target)

            # persist
            pool = Cloud.union([pool, cloud])
            mixture.append(Component(target.temperature, log_evidence))
            _reweight(pool, target, mixture)

            history.record(
                target,
                outcome,
                iteration=iteration,
                ess=ess,
                resampled=True,
                distinct_ancestors=distinct(ancestors),
                distinct_roots=cloud.distinct_roots,
                step_size=step_size,
                log_evidence=log_evidence,
                evidence_variance=math.nan,
                data_passes=cloud.evaluations / (len(data) * self.num_particles),
                seconds=clock.seconds(),
                non_finite=0 if iteration else lost,
            )
            state = State(start, pool, target, step, history, [], iteration + 1, mixture)
            with clock.paused():
                yield (result := Result.of(state, len(data), data.like))

    def _begin(self, posterior: Posterior, data: Data) -> State:
        """Draws from the prior, and the likelihood of all the data there."""
        mixture = [Component(0.0, 0.0)] * math.ceil(2 * self.ess)
        pool = Cloud.from_prior(posterior, len(mixture) * self.num_particles, self.seed, self.move.uses_gradient)
        target = Target(0, len(data), temperature=0.0, mean_weight=data.mean_weight)
        pool.observe(data, PRIOR, target)
        return State(Start(), pool, target, StepSize(self.move), History(), [], mixture=mixture)

    def _next_temperature(self, current: float, pool: Cloud) -> float:
        """The highest at which the pool, weighted by the current one, has the effective sample size asked for."""
        alive = np.isfinite(pool.log_weights)
        log_weights, log_likelihood = pool.log_weights[alive], pool.log_likelihood[alive]

        def excess(temperature: float) -> float:
            increment = (temperature - current) * log_likelihood
            ess = ops.normalize_log_weights(log_weights + increment, backend=pool.posterior.host_backend).ess
            return float(ess) / (self.ess * self.num_particles) - 1

        return highest_temperature(current, excess)


def log_mixture(log_likelihood: np.ndarray, mixture: Sequence[Component]) -> np.ndarray:
    """Log of the mean density of the components over that of the prior, float64 [n]."""
    log_sum = np.full(len(log_likelihood), -np.inf)
    for temperature, log_evidence in mixture:
        np.logaddexp(log_sum, temperature * log_likelihood - log_evidence, out=log_sum)
    return log_sum - np.log(len(mixture))


def _reweight(pool: Cloud, target: Target, mixture: Sequence[Component]) -> tuple[float, int]:
    """Weight the pool anew, as draws of the mixture; returns the log evidence of the target, and how many were lost."""
    pool.log_weights = np.where(np.isneginf(pool.log_weights), -np.inf, -np.log(len(pool.log_weights)))
    with np.errstate(invalid="ignore"):  # of particles that are lost
        ratio = target.power * pool.log_likelihood - log_mixture(pool.log_likelihood, mixture)
    return pool.reweight(ratio)
