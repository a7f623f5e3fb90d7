"""Proposals: how the particles move under a target, and how long their steps are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from fastsmc import random
from fastsmc.annealing import Target
from fastsmc.cloud import Cloud, Data
from fastsmc.lkernels import ForwardProposal, LKernel, Reversible


class Proposal(NamedTuple):
    """Where every particle would go, with the likelihood there, and the log ratio that accepts or weights it, [P]."""

    particles: np.ndarray
    grad: np.ndarray | None
    log_likelihood: np.ndarray
    log_prior: np.ndarray
    log_ratio: np.ndarray


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
    def lkernel(self) -> LKernel:
        """The weight update of this move."""
        return Reversible

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
        stay = np.flatnonzero(~self.lkernel.accepted(ratio, np.log1p(-u)))
        for old, new in (
            (cloud.particles, proposal.particles),
            (cloud.grad, proposal.grad),
            (cloud.log_likelihood, proposal.log_likelihood),
            (cloud.log_prior, proposal.log_prior),
        ):
            if new is not None:
                new[stay] = old[stay]
        if cloud.spare:
            cloud.spare = cloud.particles, cloud.grad, cloud.spare[2]
        cloud.particles, cloud.grad = proposal.particles, proposal.grad
        cloud.log_likelihood, cloud.log_prior = proposal.log_likelihood, proposal.log_prior
        finite = ratio[np.isfinite(ratio)]
        energy_error = float(np.mean(np.abs(finite))) if len(finite) else math.inf
        return Outcome(self.lkernel.log_increment(ratio), acceptance_of(ratio), energy_error)


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
        log_likelihood, grad = cloud.evaluate(particles, *data.batch(target))
        log_prior = cloud.posterior.log_prior(particles)
        change = log_prior + target.power * log_likelihood - cloud.log_density(target)
        return Proposal(particles, grad, log_likelihood, log_prior, change)


@dataclass(frozen=True)
class HMC(Move):
    """Hamiltonian Monte Carlo: fresh momentum, ``num_steps`` leapfrog steps (Neal, 2011).

    With ``adjusted`` the end point is accepted or rejected and the L-kernel is the reversible one; without, every end
    point is taken and weighted by its energy error (`ForwardProposal`).
    """

    num_steps: int = 10
    adjusted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps!r}; it must be at least 1")

    @property
    def lkernel(self) -> LKernel:
        """Reversible where adjusted."""
        return Reversible if self.adjusted else ForwardProposal

    def probe(self) -> HMC:
        """One leapfrog step."""
        return replace(self, num_steps=1)

    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        particles, grad, end = cloud.trajectory(
            *data.batch(target),
            step_size=step_size,
            num_steps=self.num_steps,
            likelihood_scale=target.power,
            **draw.key(random.Stream.MOMENTUM),
        )
        log_prior = cloud.posterior.log_prior_from_energy(end.prior_energy)
        change = log_prior + target.power * end.log_likelihood - cloud.log_density(target)
        ratio = change + end.kinetic_before - end.kinetic_after
        return Proposal(particles, grad, end.log_likelihood, log_prior, ratio)


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

    def adapt(self, acceptance: float) -> None:
        """Lengthen or shorten the step after a move."""
        if self.adapts:
            self.value *= math.exp(self.gain * (acceptance - self.move.target_acceptance))

    def _search(self, cloud: Cloud, data: Data, target: Target, draw: Draw) -> float:
        """Double or halve until the acceptance of one step crosses its target."""

        def too_long(step: float) -> bool:
            ratio = probe.propose(cloud, data, target, step, draw).log_ratio
            return acceptance_of(ratio) < probe.target_acceptance

        probe = self.move.probe()
        step, shrink = self.initial, too_long(self.initial)
        for _ in range(self.max_search):
            step *= 0.5 if shrink else 2.0
            if too_long(step) != shrink:
                break
        return step if shrink else step / 2
