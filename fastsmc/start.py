"""Where a run starts: at draws from the prior, at an earlier result, or at particles of any other origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastsmc import arrays, random
from fastsmc.annealing import PRIOR, Annealing, Target
from fastsmc.arrays import View
from fastsmc.batches import Data
from fastsmc.cloud import Cloud
from fastsmc.networks import Network
from fastsmc.posterior import Posterior
from fastsmc.result import History, Result
from fastsmc.steps import StepSize

START = 2**32 - 2
"""The iteration whose random numbers the noise of a start takes."""


class State(NamedTuple):
    """All that the next iteration of a run depends on, beside the sampler and its data.

    ``number`` iterations have been made; ``mixture`` is that of persistent sampling.
    """

    start: Start
    cloud: Cloud
    target: Target
    step: StepSize
    history: History
    genealogy: list[np.ndarray]
    number: int = 0
    mixture: Sequence[tuple[float, float]] = ()

    @property
    def log_evidence(self) -> float:
        """Of the data seen so far."""
        return float(self.history["log_evidence"][-1]) if len(self.history) else self.start.log_evidence

    @property
    def seconds(self) -> float:
        """That the iterations have taken."""
        return float(self.history["seconds"][-1]) if len(self.history) else 0.0


class Start:
    """Draws from the prior, and what the other starts have in their place."""

    origin: ClassVar[str] = "prior"
    """`Result.started_from` of runs that start so."""
    num_data: int = 0
    """Data points that the particles have seen."""
    iteration: int = 0
    """Number of the first iteration; those before had their random numbers."""
    log_evidence: float = 0.0
    """Of those data, and the relative variance of its estimate."""
    evidence_variance: float = 0.0
    warnings: Sequence[str] = ()
    """What the result that this is had warned of."""

    def begin(self, sampler: Any, posterior: Posterior, data: Data) -> State:
        """The state of an `SMC` sampler's run before its first iteration."""
        move = sampler.move_for(len(data))
        cloud = self.cloud(sampler, posterior, move.uses_gradient)
        target = self.target(sampler.annealing, data)
        cloud.observe(data, PRIOR, target)
        return State(self, cloud, target, StepSize(move), History(), [])

    def target(self, annealing: Annealing, data: Data) -> Target:
        """What the particles represent."""
        return annealing.initial_target(len(data))

    def particles(self, posterior: Posterior, slots: range, seed: int) -> View:
        """Particles of some slots, [n, d], on the posterior's device."""
        return posterior.sample_prior(len(slots), seed, slots.start)

    def cloud(self, sampler: Any, posterior: Posterior, with_grad: bool) -> Cloud:
        """Weighted particles, which have yet to be told of the data."""
        slots = range(sampler.num_particles)[sampler.ranks.here]
        return Cloud.of(posterior, self.particles(posterior, slots, sampler.seed), with_grad, sampler.ranks)


@dataclass(frozen=True, eq=False)
class WarmStart(Start):
    """Particles near networks that were trained before: weighted equally, and in no way corrected for it.

    A particle starts at each network in turn, with normal noise. What the run leaves is a sample of the posterior only
    as far as its moves forget where they started, and no estimate of the evidence.

    Parameters
    ----------
    members
        Weights [K, d] of K networks, or a sequence of torch modules or their ``state_dict``s, with the names and shapes
        of ``network.parameters``. What the posterior samples beside the weights is drawn from the prior, unless rows
        hold that too, as its particles do.
    spread
        Standard deviation of the noise on every number.
    """

    members: Any
    spread: float = 0.01

    origin: ClassVar[str] = "particles"

    def __post_init__(self) -> None:
        if not 0 <= self.spread < np.inf:
            raise ValueError(f"spread is {self.spread!r}; it must be a finite standard deviation, zero or more")

    def particles(self, posterior: Posterior, slots: range, seed: int) -> View:
        """See `Start`."""
        particles, rows = super().particles(posterior, slots, seed), _rows(self.members, posterior)
        rows = rows[np.arange(slots.start, slots.stop) % len(rows)]
        if self.spread > 0:
            key = {"seed": seed, "stream": random.Stream.MOMENTUM, "iteration": START, "first_slot": slots.start}
            rows = rows + np.float32(self.spread) * random.normal(rows.shape, **key, backend=posterior.host_backend)
        if rows.shape[1] < posterior.num_params:
            rows = rows / _units(posterior, particles)
        particles[:, : rows.shape[1]] = posterior.memory.put(rows)
        return particles


@dataclass(frozen=True, eq=False)
class Continuation(Start):
    """The posterior of the data of an earlier run, which are the first of those of this one."""

    result: Result

    def __post_init__(self) -> None:
        if not self.result.target.is_posterior(self.result.num_data):
            raise ValueError(
                f"initial represents {self.result.target}; it must be the posterior given all the {self.num_data} data "
                "points of its run"
            )

    @property
    def origin(self) -> str:
        """See `Start`; a warm start stays one."""
        return "particles" if self.result.started_from == "particles" else "result"

    @property
    def num_data(self) -> int:
        """See `Start`."""
        return self.result.num_data

    @property
    def iteration(self) -> int:
        """See `Start`."""
        return int(self.result.history["iteration"][-1]) + 1

    @property
    def log_evidence(self) -> float:
        """See `Start`."""
        return float(self.result.history["log_evidence"][-1])

    @property
    def evidence_variance(self) -> float:
        """See `Start`; the steps of a run are taken for independent."""
        return float(self.result.history["evidence_variance"][-1])

    @property
    def warnings(self) -> Sequence[str]:
        """See `Start`."""
        return tuple(self.result.warnings)

    def target(self, annealing: Annealing, data: Data) -> Target:
        """See `Start`."""
        if not annealing.extends:
            raise ValueError(
                f"annealing is {annealing!r}, which does not keep the data that initial has seen; it must be "
                "AdaptiveDataAnnealing, or another scheme whose batches only grow"
            )
        return Target(0, self.num_data, mean_weight=data.mean_weight)

    def cloud(self, sampler: Any, posterior: Posterior, with_grad: bool) -> Cloud:
        """See `Start`; resampled where other numbers of particles are asked for."""
        old = self.result.posterior
        for name in ("network", "prior", "likelihood"):
            there, here = (getattr(p, name) for p in (old, posterior))
            if there != here:
                raise ValueError(f"initial has another {name}, {there}; it must have that of the run, {here}")
        memory = posterior.memory
        given = np.array(arrays.on_host(self.result.particles, "particles"), np.float32)
        cloud = Cloud.of(posterior, memory.put(given), with_grad)
        cloud.reweight(arrays.on_host(self.result.log_weights, "log_weights"))
        if len(given) != sampler.num_particles:
            cloud, _ = cloud.resample(sampler.num_particles, sampler.resampling, sampler.seed, START)
            cloud.roots, cloud.resamplings = np.arange(sampler.num_particles), 0
        return cloud.shared(sampler.ranks)


@dataclass(frozen=True, eq=False)
class Resumption(Start):
    """The state of a run between two of its iterations, as a file holds it.

    Parameters
    ----------
    result
        What the run had yielded.
    arrays
        What the cloud has besides, for each particle or each weight, by the names of `Cloud`.
    numbers
        What the cloud has one of.
    step_size, number, mixture
        As `State` has them.
    origin, num_data, iteration, evidence_variance, warnings
        Of how the run had begun, as `Start` has them.
    """

    result: Result
    arrays: Mapping[str, np.ndarray]
    numbers: Mapping[str, Any]
    step_size: float | None
    number: int
    mixture: Sequence[Sequence[float]]
    origin: str
    num_data: int
    iteration: int
    evidence_variance: float
    warnings: Sequence[str] = ()

    @classmethod
    def of(cls, result: Result) -> Resumption:
        """A copy of the state that a result has come with."""
        state, names = result.state, ("origin", "num_data", "iteration", "evidence_variance", "warnings")
        began = {name: getattr(state.start, name) for name in names}
        return cls(result, *state.cloud.stored(), state.step.value, state.number, tuple(state.mixture), **began)

    def begin(self, sampler: Any, posterior: Posterior, data: Data) -> State:
        """See `Start`."""
        result = self.result
        particles, log_weights = (arrays.on_host(getattr(result, name), name) for name in ("particles", "log_weights"))
        cloud = Cloud.restored(posterior, particles, log_weights, self.arrays, self.numbers).shared(sampler.ranks)
        step = StepSize(sampler.move_for(len(data)))
        step.value = self.step_size
        history, genealogy = result.history.copy(), list(result.genealogy or ())
        return State(self, cloud, result.target, step, history, genealogy, self.number, self.mixture)


def as_start(initial: Any, num_particles: int) -> Start:
    """The start that a user means by ``initial``; see `Sampler.run`."""
    if initial is None:
        return Start()
    if isinstance(initial, Start):
        return initial
    if isinstance(initial, Result):
        return Continuation(initial)
    if isinstance(initial, Sequence):
        return WarmStart(initial)
    given = arrays.on_host(initial, "initial")
    if given.ndim != 2 or len(given) != num_particles:
        raise ValueError(
            f"initial has shape {given.shape}; it must be a Result, a list of networks, or [{num_particles}, d] weights"
        )
    return WarmStart(given, spread=0.0)


def _units(posterior: Posterior, particles: View) -> np.ndarray:
    """What multiplies the coordinates of the weights, [P, d], by the scales that are sampled."""
    ones = posterior.memory.copy(particles)
    ones[:, : posterior.network.num_params] = 1
    tensors = posterior.unpack(ones)
    return np.concatenate(
        [posterior.memory.host(tensors[p.name]).reshape(len(ones), -1) for p in posterior.network.parameters], axis=1
    )


def _rows(members: Any, posterior: Posterior) -> np.ndarray:
    """Weights of networks, or particles, float32 [K, d]."""
    if isinstance(members, Sequence):
        members = np.array([_pack(member, posterior.network) for member in members])
    rows = arrays.on_host(members, "initial")
    if rows.ndim != 2 or rows.shape[1] not in (posterior.network.num_params, posterior.num_params) or len(rows) == 0:
        raise ValueError(f"initial has shape {rows.shape}; it must be [P, {posterior.num_params}], as particles are")
    if rows.dtype.kind not in arrays.REALS or not np.isfinite(rows).all():
        raise ValueError("initial holds NaN, infinity or no numbers; every weight must be a finite number")
    return rows.astype(np.float32)


def _pack(member: Any, network: Network) -> np.ndarray:
    """The weights of a torch module or of its state, [d]."""
    if not (isinstance(member, Mapping) or hasattr(member, "state_dict")):
        raise TypeError(f"initial holds a {type(member).__name__}; each network must be a torch module or a state_dict")
    state = member if isinstance(member, Mapping) else member.state_dict()
    missing = [p.name for p in network.parameters if p.name not in state or tuple(state[p.name].shape) != p.shape]
    if missing:
        raise ValueError(f"initial has no {missing[0]} of the shape that the network has; it must be of {network}")
    return np.concatenate([arrays.on_host(state[p.name], p.name).ravel() for p in network.parameters])
