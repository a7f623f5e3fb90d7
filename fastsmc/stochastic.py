"""Moves whose forces come from parts of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import ClassVar

import numpy as np

from fastsmc import random
from fastsmc.annealing import Target
from fastsmc.arrays import View
from fastsmc.batches import Data
from fastsmc.checks import check_whole
from fastsmc.cloud import Cloud, Proposal
from fastsmc.lkernels import ForwardProposal, LKernel, Unweighted
from fastsmc.moves import Draw, KineticLangevin, Move, check_persistence
from fastsmc.ranks import group_size


@dataclass(frozen=True)
class SGHMC(Move):
    """HMC with forces from parts of the batch (Chen, Fox and Guestrin, 2014).

    A step is half a drift, a partial refreshment of the momentum, of which the share ``persistence`` stays, the force
    of a part of at most ``batch_size`` points, scaled up to the batch, and half a drift. A move takes ``num_steps``, or
    as many as see the share ``coverage`` of the batch. A batch that is one part gives exact forces: there the move is
    `KineticLangevin`, which accepts or rejects.

    Elsewhere it is taken for one that leaves the target as it is, which it does as the step goes to zero. The noise of
    the forces would heat the particles, so that the refreshments add that much less; steps are so short that they add
    half of it at least. The noise is known weight by weight from the mean squares of the gradients, which scale the
    weights too (after Ahn, Korattikara and Welling, 2012, who let the noise of the gradient do the work of the
    sampler's own), but not how that of different weights correlates. Groups of ``sharing`` particles, rounded up to
    whole groups of ``fastsmc.ranks``, have parts of their own: were all forces of one part, their noise would move the
    cloud as one instead of spreading it. There are sixteen groups at most, of more particles where need be, for each
    group is a call of the kernels. A particle that diverges, by a momentum ten times as hot as it should be, stays
    where it was; the steps become shorter by that heat.

    Drifts and kicks preserve volume, so that the proposal and its reversal have a ratio, whatever the force: with
    ``weighted`` it is the weight of `ForwardProposal`, and the particles stay exactly weighted, at the price of the
    noise of the forces in the weights; the refreshments are full ones then.
    """

    precondition: bool = field(default=True, kw_only=True)
    num_steps: int = 5
    batch_size: int = 256
    persistence: float = 0.7
    coverage: float = 0.05
    sharing: int = 4
    weighted: bool = False

    uses_gradient: ClassVar[bool] = False
    noise_share: ClassVar[float] = 0.5
    diverged: ClassVar[float] = 10.0
    """Mean square of a momentum, one in equilibrium, from which on a particle stays where it was."""
    most_groups: ClassVar[int] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_moves is None:
            raise ValueError("num_moves is None; it must be a number for SGHMC, which does not compute log densities")
        for name in ("num_steps", "batch_size", "sharing"):
            check_whole(name, getattr(self, name))
        if not self.coverage >= 0:
            raise ValueError(f"coverage is {self.coverage!r}; it must be at least 0")
        check_persistence(self.persistence)

    @property
    def adjusted(self) -> bool:
        """See `Move`."""
        return not self.weighted

    @cached_property
    def whole(self) -> KineticLangevin:
        """The move where the batch is one part; its momentum lasts as long."""
        names = ("step_size", "target_acceptance", "num_moves", "precondition", "num_steps")
        shared = {name: getattr(self, name) for name in names}
        return KineticLangevin(**shared, persistence=self.persistence**self.num_steps, adjusted=not self.weighted)

    def tells_step(self, target: Target) -> bool:
        """Where forces are exact; else the energy error would be one of the forces, not of the step."""
        return target.batch_size <= self.batch_size

    def backward_kernel(self, target: Target) -> LKernel:
        """That of the move with exact forces, the forward proposal's, or none."""
        if self.tells_step(target):
            return self.whole.backward_kernel(target)
        return ForwardProposal() if self.weighted else Unweighted()

    def longest_step(self, target: Target) -> float:
        """That at which the noise of the forces is ``noise_share`` of what refreshments add, in the weights' scale."""
        if self.weighted or not self.precondition or self.tells_step(target):
            return math.inf
        return math.sqrt(self.noise_share * (1 - self.persistence**2) * target.count / self._force_variance(target))

    def _force_variance(self, target: Target) -> float:
        """Of a part's force, scaled up to the batch, in units of the information of a data point of weight one."""
        parts = math.ceil(target.batch_size / self.batch_size)
        return (target.mean_weight * target.power) ** 2 * target.batch_size * (parts - 1)

    def start(self, cloud: Cloud, data: Data, target: Target) -> None:
        """See `Move`."""
        if self.tells_step(target):
            cloud.know_gradient(data, target)
        super().start(cloud, data, target)

    def probe(self) -> SGHMC:
        """One step."""
        return replace(self, num_steps=1)

    @np.errstate(over="ignore", invalid="ignore")  # of particles that diverge
    def propose(self, cloud: Cloud, data: Data, target: Target, step_size: float, draw: Draw) -> Proposal:
        """See `Move`."""
        if self.tells_step(target):
            cloud.know_gradient(data, target)
            return self.whole.propose(cloud, data, target, step_size, draw)
        posterior, count, here, first = cloud.posterior, len(cloud), len(cloud.particles), cloud.ranks.first
        whole = group_size(count)
        size = whole * math.ceil(max(self.sharing, count / self.most_groups) / whole)
        parts = Parts(cloud, data, target, self.batch_size, draw)
        steps = max(self.num_steps, round(self.coverage * parts.number))
        keys = [draw._replace(number=draw.number * steps + k).key(random.Stream.MOMENTUM) for k in range(steps)]
        if self.precondition and cloud.information is None:
            cloud.learn(parts.mean_squares([cloud.squares(parts.force(cloud.particles, 0))]))
        scale, noise = self.scale(cloud, target), None
        if not self.weighted and cloud.information is not None:
            variance = self._force_variance(target) * cloud.information * (1.0 if scale is None else scale**2)
            noise = np.sqrt(np.maximum(1 - self.persistence**2 - step_size**2 * variance, 0)).astype(np.float32)
        memory = cloud.memory
        fresh, kept = cloud.momentum is None, {"refresh": self.persistence, "noise": memory.put(noise)}
        units = memory.put(scale)
        momentum = memory.copy(cloud.refresh(0.0, **keys[0]) if fresh else cloud.momentum)
        particles = memory.copy(cloud.particles)
        edges = range(0, count, size)
        slots = [slice(max(begin - first, 0), min(begin + size - first, here)) for begin in edges]
        of_all = zip(slots, parts.choose(len(slots), steps), strict=True)
        groups = [(some, which) for some, which in of_all if some.start < some.stop]  # the others are of other ranks
        plan = {"scale": units, "likelihood_scale": target.power * parts.number, "first_slot": first, "check": False}
        step = partial(posterior.leapfrog, particles, momentum, **plan)
        step(momentum, kick=0.0, drift=step_size / 2)
        gained, force = memory.zeros((here,), np.float64), memory.empty(particles.shape, np.float32)
        for k, key in enumerate(keys):
            for some, which in groups:
                force[some] = parts.force(particles[some], which[k])
            drift = step_size if k + 1 < steps else step_size / 2
            energies = step(force, kick=step_size, drift=drift, **({} if fresh and k == 0 else kept), **key)
            if self.weighted:
                gained += energies.kinetic_before - energies.kinetic_after
        forces, momenta = ([cloud.squares(rows[some]) for some, _ in groups] for rows in (force, momentum))
        columns = [posterior.log_prior(particles), energies.kinetic_after * (2 / momentum.shape[1]), gained]
        log_prior, kinetic, work = cloud.ranks.gather(*memory.hosts(columns))
        information, variance = parts.mean_squares(forces), cloud.total(momenta) / count
        heat = _heat(variance, scale, posterior.prior_precision)
        learned = {"information": information if heat < self.diverged else information * np.nan, "heat": heat}
        if not self.weighted:
            ratio = np.where(np.isfinite(log_prior) & (kinetic < self.diverged), 0.0, np.nan)
            return Proposal(particles, None, None, log_prior, ratio, momentum, **learned)
        cloud.likelihood(data, target)
        log_likelihood, _ = cloud.evaluate(particles, data.batch(target))
        ratio = log_prior + target.power * log_likelihood - cloud.log_density(target) + work
        return Proposal(particles, None, log_likelihood, log_prior, ratio, momentum, **learned)


class Parts:
    """The batch of a target in ``number`` parts of at most ``size`` points, drawn at random for a move."""

    def __init__(self, cloud: Cloud, data: Data, target: Target, size: int, draw: Draw) -> None:
        self.number = math.ceil(target.batch_size / size)
        self._cloud, self._target, self._batch = cloud, target, data.batch(target)
        self._draw = partial(random.uniform, **draw.key(random.Stream.PARTS), backend=cloud.posterior.host_backend)
        order = np.argsort(self._draw((1, target.batch_size))[0])
        edges = np.arange(self.number + 1) * target.batch_size // self.number
        order = cloud.memory.put(order)
        self._rows = [order[begin:end] for begin, end in pairwise(edges)]

    def choose(self, groups: int, steps: int) -> np.ndarray:
        """A part for every step of every group, int64 [groups, steps]."""
        return (self._draw((groups, steps), first_slot=1) * self.number).astype(np.int64)

    def force(self, particles: View, part: int) -> View:
        """Gradient of the log-likelihood of a part, [P, d]."""
        return self._cloud.evaluate_some(particles, self._batch.take(self._rows[part]))[1]

    def mean_squares(self, squares: Sequence[View]) -> np.ndarray:
        """Mean square of the gradient of a data point of weight one, [d], of what `Cloud.squares` made of forces."""
        points = len(self._cloud) * self._target.batch_size / self.number
        return self._cloud.total(squares) / (points * self._target.mean_weight**2)


def _heat(variance: np.ndarray, scale: np.ndarray | None, prior_precision: np.ndarray) -> float:
    """Mean of the variance of the momentum [d], over the weights by the data's share in what determines them."""
    share = np.ones_like(variance) if scale is None else 1 - prior_precision * scale**2
    return float(variance @ share / max(share.sum(), np.finfo(float).tiny))
