"""Proposals: how the particles move under a target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from fastsmc import random
from fastsmc.annealing import Target
from fastsmc.batches import Data
from fastsmc.checks import check_whole
from fastsmc.cloud import Cloud, Proposal
from fastsmc.lkernels import LKERNELS, LKernel, Reversible


class Outcome(NamedTuple):
    """Of one move of all particles: log weights to add [P], mean acceptance probability, mean absolute energy error.

    The last two are NaN for moves that do not compute them; moves with noisy forces have a ``heat``, as `Proposal`.
    ``diverged`` of the particles that have a weight had no place to go to, and stayed where they were.
    """

    log_increment: np.ndarray
    acceptance: float
    energy_error: float
    heat: float = math.nan
    diverged: int = 0


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
    """What all moves share: the step size, its adaptation, the number of moves, and acceptance by the L-kernel.

    ``step_size`` None is found at the first batch and adapted from iteration to iteration towards
    ``target_acceptance``: the mean over particles of min(1, exp(log ratio)), which for moves without accept/reject
    measures their energy error. A number is held fixed. ``target_acceptance`` None is what suits the move; without
    accept/reject 0.95 or so, since steps near the longest that are stable leave all weight to a few particles.

    With ``precondition`` the steps of every weight are in units of its deviation under the target as the Fisher
    information estimates it (``Cloud.scale``), which is learned from the particles' gradients as the run goes on. It
    pays where the particles stay near their targets, as adaptive schemes keep them; far from them it misleads.

    ``num_moves`` moves are made at every iteration; where it is None, as many as it takes until the particles' log
    densities correlate by less than ``decorrelation`` with those before the first, at most ``most_moves``.
    """

    step_size: float | None = None
    target_acceptance: float | None = None
    num_moves: int | None = 1
    precondition: bool = False

    uses_gradient: ClassVar[bool] = True
    best_acceptance: ClassVar[float] = 0.8
    """For the distance per step, where proposals are accepted or rejected."""
    safe_acceptance: ClassVar[float] = 0.95
    """Where they are not."""
    decorrelation: ClassVar[float] = 0.5
    most_moves: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size is {self.step_size!r}; it must be positive, or None to be adapted")
        if self.target_acceptance is not None and not 0 < self.target_acceptance < 1:
            raise ValueError(f"target_acceptance is {self.target_acceptance!r}; it must lie between 0 and 1")
        if self.num_moves is not None:
            check_whole("num_moves", self.num_moves, also=", or None to be adapted")

    @property
    def adjusted(self) -> bool:
        """Whether proposals are accepted or rejected, where forces are exact; a parameter of some moves."""
        return True

    @property
    def aim(self) -> float:
        """The acceptance that the step size is adapted to."""
        if self.target_acceptance is not None:
            return self.target_acceptance
        return self.best_acceptance if self.adjusted else self.safe_acceptance

    def backward_kernel(self, target: Target) -> LKernel:
        """The weight update of this move under a target."""
        return Reversible()

    def longest_step(self, target: Target) -> float:
        """The step size that must not be exceeded under a target."""
        return math.inf

    def tells_step(self, target: Target) -> bool:
        """Whether the acceptance under a target says something of the step size."""
        return True

    def probe(self) -> Move:
        """The cheapest move whose acceptance tells whether a step is too long."""
        return self

    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """Propose a move of every particle, leaving the cloud as it is."""
        raise NotImplementedError

    def scale(self, cloud: Cloud, target: Target) -> np.ndarray | None:
        """Units of the weights' steps, float32 [d]; None where all are one."""
        return cloud.scale(target) if self.precondition else None

    def start(self, cloud: Cloud, data: Data, target: Target) -> None:
        """Learn the scale of the weights before the first move."""
        self.learn(cloud, target)

    def learn(self, cloud: Cloud, target: Target) -> None:
        """Take in what the gradients where the particles are say of the scale of the weights."""
        if self.precondition and cloud.grad is not None and target.count > 0:
            cloud.learn(cloud.information_at(target))

    def rounds(self, cloud: Cloud, target: Target) -> Iterator[int]:
        """Numbers of the moves of an iteration."""
        if self.num_moves is not None:
            yield from range(self.num_moves)
            return
        before = cloud.log_density(target)
        for number in range(self.most_moves):
            yield number
            if correlation(before, cloud.log_density(target)) < self.decorrelation:
                return

    def __call__(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Outcome:
        """Move the cloud under a target."""
        proposal = self.propose(cloud, data, target, step_size, draw)
        ratio = proposal.log_ratio
        stream = draw.key(random.Stream.ACCEPTANCE)
        u = random.uniform((1, len(ratio)), **stream, backend=cloud.posterior.host_backend)[0]
        backward = self.backward_kernel(target)
        increment = backward.log_increment(cloud, proposal)
        cloud.adopt(proposal, backward.accepted(ratio, np.log1p(-u)))
        if proposal.information is None:
            self.learn(cloud, target)
        else:
            cloud.learn(proposal.information)
        diverged = np.count_nonzero(np.isnan(ratio[cloud.log_weights > -np.inf]))
        if not backward.exact:
            return Outcome(increment, math.nan, math.nan, proposal.heat, diverged)
        finite = ratio[np.isfinite(ratio)]
        energy_error = float(np.mean(np.abs(finite))) if len(finite) else math.inf
        return Outcome(increment, acceptance_of(ratio, cloud), energy_error, proposal.heat, diverged)


def check_persistence(persistence: float) -> None:
    """Raise ValueError unless it is a share of the momentum that may stay."""
    if not 0 <= persistence < 1:
        raise ValueError(f"persistence is {persistence!r}; it must be at least 0 and less than 1")


def acceptance_of(log_ratio: np.ndarray, cloud: Cloud) -> float:
    """Mean acceptance probability of the particles that have a weight; a ratio that is NaN counts as zero."""
    ratio = log_ratio[cloud.log_weights > -np.inf]
    return float(np.mean(np.exp(np.minimum(np.where(np.isnan(ratio), -np.inf, ratio), 0.0))))


def correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Of two columns over the particles that have both finite; 1 where one of them does not vary."""
    both = np.isfinite(before) & np.isfinite(after)
    columns = [column[both] - column[both].mean() for column in (before, after)]
    norm = math.sqrt(np.prod([np.sum(column**2) for column in columns]))
    return float(columns[0] @ columns[1] / norm) if norm > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class RandomWalk(Move):
    """Metropolis random walk: ``theta' = theta + step_size * xi``. Needs no gradient, and has no preconditioner."""

    uses_gradient: ClassVar[bool] = False
    best_acceptance: ClassVar[float] = 0.234

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precondition:
            raise ValueError(
                "precondition is True; it must be False for RandomWalk, which has no gradients to learn from"
            )

    @np.errstate(invalid="ignore")  # -inf less -inf, where a particle has weight zero
    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        stream = draw.key(random.Stream.MOMENTUM)
        where = {"backend": cloud.posterior.backend, "device": cloud.posterior.device}
        particles = random.normal(tuple(cloud.particles.shape), **stream, **where, first_slot=cloud.ranks.first)
        particles *= step_size
        particles += cloud.particles
        log_likelihood, grad = cloud.evaluate(particles, data.batch(target))
        (log_prior,) = cloud.ranks.gather(cloud.memory.host(cloud.posterior.log_prior(particles)))
        change = log_prior + target.power * log_likelihood - cloud.log_density(target)
        return Proposal(particles, grad, log_likelihood, log_prior, change)


@dataclass(frozen=True)
class HMC(Move):
    """Hamiltonian Monte Carlo: fresh momentum, ``num_steps`` leapfrog steps (Neal, 2011).

    With ``adjusted`` the end point is accepted or rejected and the L-kernel is the reversible one; without, every end
    point is taken and weighted: by its energy error where ``lkernel`` is ``"forward"`` (`ForwardProposal`), by an
    approximation of the optimal L-kernel where it is ``"gaussian"`` (`GaussianApproximation`, for small networks).
    The length of each trajectory varies at random by the share ``jitter`` either way, so that none is a period.
    """

    num_steps: int = 10
    adjusted: bool = True
    jitter: float = field(default=0.2, kw_only=True)
    lkernel: str = field(default="forward", kw_only=True)

    persistence: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("num_steps", self.num_steps)
        check_persistence(self.persistence)
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is {self.jitter!r}; it must be at least 0 and less than 1")
        if self.lkernel not in LKERNELS:
            raise ValueError(f"lkernel is {self.lkernel!r}; it must be one of {', '.join(LKERNELS)}")
        if self.lkernel != "forward" and (self.adjusted or self.persistence > 0):
            raise ValueError(
                f"lkernel is {self.lkernel!r}; it must be 'forward' unless adjusted is False and all momenta are fresh"
            )

    def backward_kernel(self, target: Target) -> LKernel:
        """Reversible where adjusted, otherwise what ``lkernel`` names."""
        return Reversible() if self.adjusted else LKERNELS[self.lkernel]()

    def probe(self) -> HMC:
        """One leapfrog step."""
        return replace(self, num_steps=1)

    @np.errstate(invalid="ignore")  # -inf less -inf, where a particle has weight zero
    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        key, backend = draw.key(random.Stream.MOMENTUM), cloud.posterior.host_backend
        if self.persistence > 0:
            cloud.refresh(self.persistence, **key)
        if self.jitter > 0:
            u = random.uniform((1, 1), **draw.key(random.Stream.JITTER), backend=backend)[0, 0]
            step_size *= 1 + self.jitter * (2 * u - 1)
        plan = {"step_size": step_size, "num_steps": self.num_steps, "likelihood_scale": target.power}
        plan["scale"] = self.scale(cloud, target)
        (particles, grad, momentum), end = cloud.trajectory(data.batch(target), **plan, **key)
        log_prior = cloud.posterior.log_prior_from_energy(end.prior_energy)
        change = log_prior + target.power * end.log_likelihood - cloud.log_density(target)
        ratio = change + end.kinetic_before - end.kinetic_after
        return Proposal(particles, grad, end.log_likelihood, log_prior, ratio, momentum)


@dataclass(frozen=True)
class MALA(HMC):
    """Metropolis-adjusted Langevin: HMC with one leapfrog step (Roberts and Tweedie, 1996)."""

    num_steps: int = 1
    jitter: float = field(default=0.0, kw_only=True)

    best_acceptance: ClassVar[float] = 0.574


@dataclass(frozen=True)
class Langevin(HMC):
    """Unadjusted Langevin: ``theta' = theta + step^2/2 grad log pi + step * xi``, weighted by the forward proposal."""

    num_steps: int = 1
    adjusted: bool = False
    jitter: float = field(default=0.0, kw_only=True)

    best_acceptance: ClassVar[float] = MALA.best_acceptance
    safe_acceptance: ClassVar[float] = 0.9


@dataclass(frozen=True)
class KineticLangevin(HMC):
    """Underdamped Langevin, OBABO, whose momentum lasts from move to move: a share ``persistence`` of it.

    The two halves O of neighbouring moves are one. With ``adjusted`` this is generalised HMC (Horowitz, 1991): a
    particle whose proposal is rejected turns back. Without, proposals are weighted by their energy error.
    """

    num_steps: int = 1
    persistence: float = 0.9
    jitter: float = field(default=0.0, kw_only=True)
