"""Proposals: how the particles move under a target, and how long their steps are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from fastsmc import random
from fastsmc.annealing import Target
from fastsmc.cloud import Cloud, Data, Proposal
from fastsmc.lkernels import LKERNELS, ForwardProposal, LKernel, Reversible, Unweighted


class Outcome(NamedTuple):
    """Of one move of all particles: log weights to add [P], mean acceptance probability, mean absolute energy error."""

    log_increment: np.ndarray
    acceptance: float
    energy_error: float


class Draw(NamedTuple):
    """Names the random numbers of one move: a function of the seed, the iteration and the number of the move."""

    seed: int
    iteration: int
    number: int = 0

    def key(self, stream: int) -> dict[str, int]:
        """Arguments for the random numbers of a stream."""
        return {
            "seed": self.seed,
            "iteration": self.iteration,
            "stream": stream + len(random.Stream) * self.number,
        }


@dataclass(frozen=True, kw_only=True)
class Move:
    """What all moves share: the step size, its adaptation, and acceptance by the L-kernel.

    ``step_size`` None is found at the first batch and adapted from iteration to iteration towards
    ``target_acceptance``: the mean over particles of min(1, exp(log ratio)), which for moves without accept/reject
    measures their energy error. A number is held fixed.
    """

    step_size: float | None = None
    target_acceptance: float = 0.8
    num_moves: int = 1

    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size is {self.step_size!r}; it must be positive, or None to be adapted")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(f"target_acceptance is {self.target_acceptance!r}; it must lie between 0 and 1")
        if self.num_moves < 1:
            raise ValueError(f"num_moves is {self.num_moves!r}; it must be at least 1")

    @property
    def backward_kernel(self) -> LKernel:
        """The weight update of this move."""
        return Reversible()

    def tells_step(self, target: Target) -> bool:
        """Whether the acceptance under a target says something of the step size."""
        return True

    def probe(self) -> Move:
        """The cheapest move whose acceptance tells whether a step is too long."""
        return self

    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """Propose a move of every particle, leaving the cloud as it is."""
        raise NotImplementedError

    def __call__(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Outcome:
        """Move the cloud under a target."""
        proposal = self.propose(cloud, data, target, step_size, draw)
        ratio = proposal.log_ratio
        stream = draw.key(random.Stream.ACCEPTANCE)
        u = random.uniform((1, len(ratio)), **stream, backend=cloud.posterior.backend)[0]
        increment = self.backward_kernel.log_increment(cloud, proposal)
        cloud.adopt(proposal, np.flatnonzero(~self.backward_kernel.accepted(ratio, np.log1p(-u))))
        finite = ratio[np.isfinite(ratio)]
        energy_error = float(np.mean(np.abs(finite))) if len(finite) else math.inf
        return Outcome(increment, acceptance_of(ratio), energy_error)


def _check_persistence(persistence: float) -> None:
    if not 0 <= persistence < 1:
        raise ValueError(f"persistence is {persistence!r}; it must be at least 0 and less than 1")


def acceptance_of(log_ratio: np.ndarray) -> float:
    """Mean acceptance probability; a ratio that is NaN counts as zero."""
    return float(np.mean(np.exp(np.minimum(np.where(np.isnan(log_ratio), -np.inf, log_ratio), 0.0))))


@dataclass(frozen=True, kw_only=True)
class RandomWalk(Move):
    """Metropolis random walk: ``theta' = theta + step_size * xi``. Needs no gradient."""

    target_acceptance: float = 0.234
    uses_gradient: ClassVar[bool] = False

    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        stream = draw.key(random.Stream.MOMENTUM)
        noise = random.normal(cloud.particles.shape, **stream, backend=cloud.posterior.backend)
        particles = np.add(cloud.particles, np.float32(step_size) * noise, out=noise)
        log_likelihood, grad = cloud.evaluate(particles, *data.batch(target), target.weights)
        log_prior = cloud.posterior.log_prior(particles)
        change = log_prior + target.power * log_likelihood - cloud.log_density(target)
        return Proposal(particles, grad, log_likelihood, log_prior, change)


@dataclass(frozen=True)
class HMC(Move):
    """Hamiltonian Monte Carlo: fresh momentum, ``num_steps`` leapfrog steps (Neal, 2011).

    With ``adjusted`` the end point is accepted or rejected and the L-kernel is the reversible one; without, every end
    point is taken and weighted: by its energy error where ``lkernel`` is ``"forward"`` (`ForwardProposal`), by an
    approximation of the optimal L-kernel where it is ``"gaussian"`` (`GaussianApproximation`, for small networks).
    """

    num_steps: int = 10
    adjusted: bool = True
    lkernel: str = field(default="forward", kw_only=True)

    persistence: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps!r}; it must be at least 1")
        _check_persistence(self.persistence)
        if self.lkernel not in LKERNELS:
            raise ValueError(f"lkernel is {self.lkernel!r}; it must be one of {', '.join(LKERNELS)}")
        if self.lkernel != "forward" and (self.adjusted or self.persistence > 0):
            raise ValueError(
                f"lkernel is {self.lkernel!r}; it must be 'forward' unless adjusted is False and all momenta are fresh"
            )

    @property
    def backward_kernel(self) -> LKernel:
        """Reversible where adjusted, otherwise what ``lkernel`` names."""
        return Reversible() if self.adjusted else LKERNELS[self.lkernel]()

    def probe(self) -> HMC:
        """One leapfrog step."""
        return replace(self, num_steps=1)

    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        key = draw.key(random.Stream.MOMENTUM)
        if self.persistence > 0:
            cloud.refresh(self.persistence, **key)
        plan = {"step_size": step_size, "num_steps": self.num_steps, "likelihood_scale": target.power}
        (particles, grad, momentum), end = cloud.trajectory(*data.batch(target), weights=target.weights, **plan, **key)
        log_prior = cloud.posterior.log_prior_from_energy(end.prior_energy)
        change = log_prior + target.power * end.log_likelihood - cloud.log_density(target)
        ratio = change + end.kinetic_before - end.kinetic_after
        return Proposal(particles, grad, end.log_likelihood, log_prior, ratio, momentum)


@dataclass(frozen=True)
class MALA(HMC):
    """Metropolis-adjusted Langevin: HMC with one leapfrog step (Roberts and Tweedie, 1996)."""

    num_steps: int = 1
    target_acceptance: float = 0.574


@dataclass(frozen=True)
class Langevin(HMC):
    """Unadjusted Langevin: ``theta' = theta + step^2/2 grad log pi + step * xi``, weighted by the forward proposal."""

    num_steps: int = 1
    target_acceptance: float = 0.9
    adjusted: bool = False


@dataclass(frozen=True)
class KineticLangevin(HMC):
    """Underdamped Langevin, OBABO, whose momentum lasts from move to move: a share ``persistence`` of it.

    The two halves O of neighbouring moves are one. With ``adjusted`` this is generalised HMC (Horowitz, 1991): a
    particle whose proposal is rejected turns back. Without, proposals are weighted by their energy error.
    """

    num_steps: int = 1
    persistence: float = 0.9


@dataclass(frozen=True)
class SGHMC(Move):
    """HMC with forces from parts of the batch (Chen, Fox and Guestrin, 2014): ``num_steps`` steps, a part for each.

    A step is a drift, the force of a part of at most ``batch_size`` points, scaled up to the batch, and a partial
    refreshment of the momentum, of which the share ``persistence`` stays. Drifts and kicks preserve volume, so that the
    proposal and its reversal have a ratio, whatever the force: with ``weighted`` it is the weight of `ForwardProposal`,
    and the particles stay exactly weighted, at the price of the noise of the forces in the weights. Without, the move
    is taken for one that leaves the target as it is, which it does only as the step goes to zero.
    """

    num_steps: int = 10
    batch_size: int = 500
    persistence: float = 0.97
    weighted: bool = False

    uses_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("num_steps", self.num_steps), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value!r}; it must be at least 1")
        _check_persistence(self.persistence)

    @property
    def backward_kernel(self) -> LKernel:
        """The forward proposal's, or none."""
        return ForwardProposal() if self.weighted else Unweighted()

    def tells_step(self, target: Target) -> bool:
        """Whether the energy error is one of the step, not of the forces."""
        return target.batch_size <= self.batch_size

    def probe(self) -> SGHMC:
        """One step."""
        return replace(self, num_steps=1)

    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        posterior, parts = cloud.posterior, math.ceil(target.batch_size / self.batch_size)
        edges = np.arange(parts + 1) * target.batch_size // parts
        (x, y), weights = data.batch(target), target.weights
        chosen = random.uniform((1, self.num_steps), **draw.key(random.Stream.PARTS), backend=posterior.backend)[0]
        keys = [
            draw._replace(number=draw.number * self.num_steps + k).key(random.Stream.MOMENTUM)
            for k in range(self.num_steps)
        ]
        particles, momentum = cloud.particles.copy(), cloud.refresh(self.persistence, **keys[0]).copy()
        work = np.zeros(len(particles))
        drift = partial(posterior.leapfrog, particles, momentum)
        drift(momentum, kick=0.0, drift=step_size / 2)
        for k, key in enumerate(keys):
            part = int(chosen[k] * parts)
            rows = slice(edges[part], edges[part + 1])
            cloud.evaluations += (rows.stop - rows.start) * len(particles)
            counts = None if weights is None else weights[rows]
            force = posterior.log_likelihood_and_grad(particles, x[rows], y[rows], weights=counts).grad
            length = step_size if k + 1 < self.num_steps else step_size / 2
            share = self.persistence if k > 0 else None
            energies = drift(
                force, kick=step_size, drift=length, likelihood_scale=target.power * parts, refresh=share, **key
            )
            with np.errstate(invalid="ignore"):  # of particles that are lost
                work += energies.kinetic_before - energies.kinetic_after
        log_likelihood, grad = cloud.evaluate(particles, x, y, weights)
        log_prior = posterior.log_prior(particles)
        change = log_prior + target.power * log_likelihood - cloud.log_density(target)
        return Proposal(particles, grad, log_likelihood, log_prior, change + work, momentum)


class StepSize:
    """The step size of a run: found at the first target, then adapted.

    After every move ``log step += gain * (acceptance - target acceptance)``; P particles make the acceptance of one
    move precise enough for a constant gain. When the target changes the step is first scaled by the square root of
    the ratio of ``power * batch size``, as the curvature of the likelihood is.
    """

    initial = 0.1
    gain = 0.7
    max_search = 60

    def __init__(self, move: Move) -> None:
        self.move = move
        self.value = move.step_size
        self.adapts = move.step_size is None

    def prepare(self, cloud: Cloud, data: Data, previous: Target, target: Target, draw: Draw) -> None:
        """Find the step for the first target, or scale it for the next one."""
        if not self.adapts:
            return
        old, new = previous.power * previous.batch_size, target.power * target.batch_size
        if self.value is None:
            self.value = self._search(cloud, data, target, draw)
        elif new > old:
            self.value *= math.sqrt(old / new)

    def adapt(self, acceptance: float, target: Target) -> None:
        """Lengthen or shorten the step after a move."""
        if self.adapts and self.move.tells_step(target):
            self.value *= math.exp(self.gain * (acceptance - self.move.target_acceptance))

    def _search(self, cloud: Cloud, data: Data, target: Target, draw: Draw) -> float:
        """Double or halve until the acceptance of one step crosses its target."""

        def too_long(step: float) -> bool:
            ratio = probe.propose(cloud, data, target, step, draw).log_ratio
            cloud.momentum = None  # of the probe alone: the same numbers must not be mixed in again
            return acceptance_of(ratio) < probe.target_acceptance

        probe = self.move.probe()
        step, shrink = self.initial, too_long(self.initial)
        for _ in range(self.max_search):
            step *= 0.5 if shrink else 2.0
            if too_long(step) != shrink:
                break
        return step if shrink else step / 2
