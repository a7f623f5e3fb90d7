"""Which data the target uses at each iteration, at what scale and temperature.

    log pi_t(theta) = log p(theta) + temperature_t * scale_t * sum over i in batch_t of log p(y_i | x_i, theta)

The batch of an iteration serves all particles, so that every pi_t is a density and the weights telescope. The schemes
are ours, after Millard, Murphy, Green and Maskell (arXiv 2601.21983), who introduce mini-batches gradually.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from fastsmc.checks import check_whole

if TYPE_CHECKING:
    from fastsmc.batches import Data
    from fastsmc.cloud import Cloud


@dataclass(frozen=True)
class Target:
    """A density of the sequence: rows ``start:stop`` of the shuffled data, a likelihood scale and a temperature.

    The temperature is that of the points that are joining, the rows from ``settled`` on; from ``start`` on if that is
    where they begin. ``visits`` says how many iterations before have had the same density, ``mean_weight`` how much
    a data point counts by a weight of its own, on average over the data.
    """

    start: int
    stop: int
    likelihood_scale: float = 1.0
    temperature: float = 1.0
    settled: int = 0
    visits: int = 0
    mean_weight: float = 1.0

    @property
    def batch_size(self) -> int:
        """Number of data points, M."""
        return self.stop - self.start

    @property
    def bridges(self) -> bool:
        """Whether a part of the batch counts in full and the rest does not yet."""
        return self.settled > self.start and self.temperature != 1.0

    @property
    def power(self) -> float:
        """What multiplies the log-likelihood of the batch, whose points are weighted by ``weights``."""
        return self.likelihood_scale * (1.0 if self.bridges else self.temperature)

    @property
    def count(self) -> float:
        """How many data points the log-likelihood counts as: the sum of the points' weights times ``power``.

        Each counts as the mean of the weights that the data have: what is made of it needs no more than the size.
        """
        joining = (1 - self.temperature) * (self.stop - self.settled) if self.bridges else 0.0
        return self.mean_weight * self.power * (self.batch_size - joining)

    @property
    def weights(self) -> np.ndarray | None:
        """Of the points of the batch, float32 [M]; None where all count alike."""
        if not self.bridges:
            return None
        return np.where(np.arange(self.start, self.stop) < self.settled, 1, self.temperature).astype(np.float32)

    def joins(self, previous: Target) -> tuple[int, float] | None:
        """From which row on this target adds points to the previous one, and by how much they count more.

        None where the log-likelihood of the batch is not that of the previous one and something of new points.
        """
        if self.start != previous.start or self.stop < previous.stop:
            return None
        if not (self.bridges or previous.bridges):
            return previous.stop, 1.0
        if previous.bridges:
            same = (self.settled, self.stop) == (previous.settled, previous.stop)
            return (self.settled, self.temperature - previous.temperature) if same else None
        return (previous.stop, self.temperature) if self.settled == previous.stop else None

    def is_posterior(self, num_data: int) -> bool:
        """Whether this is the posterior given all the data."""
        return self.batch_size == num_data and self.power == 1.0 and not self.bridges


PRIOR = Target(0, 0, temperature=0.0)


class Annealing:
    """A scheme: it names the next target until it has none.

    ``extends`` says whether its batches keep the points that are in, so that a posterior can be a run's first target.
    """

    extends: ClassVar[bool] = False

    @property
    def num_iterations(self) -> int | None:
        """How many iterations a run has whose user names no number; None: as many as the scheme takes."""
        return 60

    def initial_target(self, num_data: int) -> Target:
        """The target that the prior draws represent: it has power zero, and may have seen data to decide by."""
        return PRIOR

    def next_target(
        self, iteration: int, num_iterations: int, data: Sized, previous: Target, cloud: Cloud
    ) -> Target | None:
        """Target of ``iteration`` (0, 1, ...), or None where the scheme ends before ``num_iterations``.

        The data are ``batches.Data``; schemes that ask the cloud nothing need no more than their number.
        """
        raise NotImplementedError


SCALES = ("full", "none")


def _check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise ValueError(f"likelihood_scale is {scale!r}; it must be 'full' (N/M) or 'none' (1)")


def _nested(size: int, num_data: int, scale: str) -> Target:
    return Target(0, size, num_data / size if scale == "full" else 1.0)


@dataclass(frozen=True)
class FullBatch(Annealing):
    """All the data from the first iteration on."""

    extends: ClassVar[bool] = True

    def next_target(self, iteration: int, num_iterations: int, data: Sized, previous: Target, cloud: Cloud) -> Target:
        """See `Annealing`."""
        return Target(0, len(data))


@dataclass(frozen=True)
class MiniBatch(Annealing):
    """``batch_size`` fresh points every ``every`` iterations: consecutive blocks of the shuffled data, over and over.

    Where blocks do not fill the data, they begin at the first point and end at the last in turn, time by time. The
    particles end on the posterior of one block, so that the run has no evidence.
    """

    batch_size: int
    every: int = 1
    likelihood_scale: str = "full"

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size)
        check_whole("every", self.every)
        _check_scale(self.likelihood_scale)

    def next_target(self, iteration: int, num_iterations: int, data: Sized, previous: Target, cloud: Cloud) -> Target:
        """See `Annealing`."""
        size = min(self.batch_size, len(data))
        time, block = divmod(iteration // self.every, len(data) // size)
        start = block * size + time % 2 * (len(data) % size)
        return replace(_nested(size, len(data), self.likelihood_scale), start=start, stop=start + size)


@dataclass(frozen=True)
class DataAnnealing(Annealing):
    """Nested batches that grow in steps: ``start`` points, then ``factor`` times as many, up to all; or given sizes.

    The iterations are shared evenly among the steps. With scale ``"none"`` this is classical data tempering (IBIS;
    Chopin, 2002), and a step costs only the likelihood of the new points.
    """

    start: int = 500
    factor: float = 2.0
    sizes: Sequence[int] | None = None
    likelihood_scale: str = "none"

    extends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("start", self.start)
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor!r}; it must be greater than 1")
        if self.sizes is not None and (len(self.sizes) == 0 or np.any(np.diff(self.sizes, prepend=0) < 1)):
            raise ValueError(f"sizes is {self.sizes!r}; it must be an increasing list of positive numbers")
        _check_scale(self.likelihood_scale)

    def steps(self, num_data: int) -> list[int]:
        """The batch sizes, the last of which is all the data."""
        if self.sizes is not None:
            return [*(int(m) for m in self.sizes if m < num_data), num_data]
        sizes = (round(self.start * self.factor**k) for k in count())
        return [*takewhile(lambda size: size < num_data, sizes), num_data]

    def next_target(self, iteration: int, num_iterations: int, data: Sized, previous: Target, cloud: Cloud) -> Target:
        """See `Annealing`."""
        steps = self.steps(len(data))
        if num_iterations < len(steps):
            raise ValueError(
                f"num_iterations is {num_iterations}; {len(steps)} steps of the data need at least that many"
            )
        size = max(previous.stop, steps[iteration * len(steps) // num_iterations])
        return _nested(size, len(data), self.likelihood_scale)


RAMPS = {
    "linear": lambda start, end, s: start + (end - start) * s,
    "geometric": lambda start, end, s: start * (end / start) ** s,
    "cosine": lambda start, end, s: start + (end - start) * (1 - math.cos(math.pi * s)) / 2,
}


@dataclass(frozen=True)
class SmoothDataAnnealing(Annealing):
    """Nested batches on a smooth ramp from ``start`` points to all the data.

    Parameters
    ----------
    start
        Points in the first batch.
    ramp
        ``"geometric"``, ``"linear"`` or ``"cosine"``. The work is the sum of the batch sizes: a linear ramp to N saves
        half of it, a geometric one from 500 to 60,000 four fifths.
    likelihood_scale
        ``"none"``: every point counts once, and an iteration re-weights by its new points only. ``"full"``: the batch
        is weighted up to the size of the data, N/M.
    full
        The share of the iterations that use all the data, at the end.
    """

    start: int = 500
    ramp: str = "geometric"
    likelihood_scale: str = "none"
    full: float = 0.1

    extends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("start", self.start)
        if self.ramp not in RAMPS:
            raise ValueError(f"ramp is {self.ramp!r}; it must be one of {', '.join(RAMPS)}")
        if not 0 <= self.full <= 1:
            raise ValueError(f"full is {self.full!r}; it must lie between 0 and 1")
        _check_scale(self.likelihood_scale)

    def next_target(self, iteration: int, num_iterations: int, data: Sized, previous: Target, cloud: Cloud) -> Target:
        """See `Annealing`."""
        ramp_length = num_iterations - max(1, round(self.full * num_iterations))
        share = min(iteration / ramp_length, 1.0) if ramp_length else 1.0
        size = round(RAMPS[self.ramp](min(self.start, len(data)), len(data), share))
        return _nested(max(previous.stop, size), len(data), self.likelihood_scale)


MOST_TEMPERATURES = 100
STEP_ERROR = 1e-9


class _Point(NamedTuple):
    temperature: float
    excess: float


def highest_temperature(current: float, excess: Callable[[float], float]) -> float:
    """Up to where ``excess`` is not negative between the temperatures ``current`` and 1, to ``STEP_ERROR`` of the step.

    By bisection, and by inverse quadratic interpolation where that converges (Chandrupatla, "A new hybrid quadratic /
    bisection algorithm for finding the zero of a nonlinear function", 1997).
    """
    newest = _Point(1.0, float(excess(1.0)))
    if newest.excess >= 0:
        return 1.0
    facing, share = _Point(current, math.nan), 0.5
    for _ in range(MOST_TEMPERATURES):
        temperature = newest.temperature + share * (facing.temperature - newest.temperature)
        point = _Point(temperature, float(excess(temperature)))
        if (point.excess >= 0) == (newest.excess >= 0):
            before, newest = newest, point
        else:
            before, facing, newest = facing, newest, point
        width = abs(facing.temperature - newest.temperature)
        least = max(STEP_ERROR * (max(newest, facing).temperature - current), math.ulp(1.0))
        if width <= least:
            break
        share = min(max(_interpolated(before, newest, facing), least / (2 * width)), 1 - least / (2 * width))
    return max(newest, facing).temperature


def _interpolated(before: _Point, newest: _Point, facing: _Point) -> float:
    """Where between the newest point and the one facing it the parabola through three has its zero, or halfway."""
    (x3, f3), (x1, f1), (x2, f2) = before, newest, facing
    place, height = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
    if height**2 < place and (1 - height) ** 2 < 1 - place:
        return f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
    return 0.5


def _next_temperature(current: float, log_likelihood: np.ndarray, cloud: Cloud, ess: float) -> float:
    """The highest at which the conditional ESS of ``log_likelihood``'s increment is ``ess``."""

    def excess(temperature: float) -> float:
        return cloud.log_conditional_ess((temperature - current) * log_likelihood) - math.log(ess)

    return highest_temperature(current, excess)


@dataclass(frozen=True)
class AdaptiveDataAnnealing(Annealing):
    """Nested batches that grow as fast as the ESS allows (Chopin, 2002; Zhou, Johansen and Aston, 2016).

    Blocks of points join, each a share ``growth`` of those that are in: at once if that leaves the effective sample
    size at ``ess`` of the particles, several together if they do, or else tempered in while the others count in full (a
    bridge). The first block, of ``start`` points, is tempered in. When all the data are in, ``settle`` iterations of
    moves alone follow, and the run ends.

    A block that is tempered in costs the likelihood of all its points at every bridge, and blocks of single points cost
    a resampling each. In between the number of bridges hardly depends on the size of the blocks, since what points have
    in common makes most of the variance of their log-likelihood: hence blocks that are small, but not too small.
    """

    start: int = 250
    ess: float = 0.4
    growth: float = 0.125
    settle: int = 40

    extends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("start", self.start)
        if not 0 < self.ess < 1:
            raise ValueError(f"ess is {self.ess!r}; it must lie between 0 and 1")
        check_whole("settle", self.settle, 0)
        if not 0 < self.growth <= 1:
            raise ValueError(f"growth is {self.growth!r}; it must lie between 0 and 1")

    @property
    def num_iterations(self) -> int | None:
        """See `Annealing`."""
        return None

    def next_target(
        self, iteration: int, num_iterations: int, data: Data, previous: Target, cloud: Cloud
    ) -> Target | None:
        """See `Annealing`."""
        settled, stop, current = previous.settled, previous.stop, previous.temperature
        if stop == 0:
            return self._temper(0, min(self.start, len(data)), 0.0, data, cloud)
        if current < 1:
            return self._temper(settled, stop, current, data, cloud)
        if stop == len(data):
            return replace(previous, visits=previous.visits + 1) if previous.visits < self.settle else None
        block = max(1, round(self.growth * stop))
        end, longer = stop, min(stop + block, len(data))
        share = math.log(self._share(cloud))
        while end < longer and cloud.log_conditional_ess(cloud.preview(data, stop, longer)) >= share:
            end, longer = longer, min(longer + (longer - stop), len(data))
        return Target(0, end, settled=stop) if end > stop else self._temper(stop, longer, 0.0, data, cloud)

    def _temper(self, settled: int, stop: int, current: float, data: Data, cloud: Cloud) -> Target:
        log_likelihood = cloud.preview(data, settled, stop)
        temperature = _next_temperature(current, log_likelihood, cloud, self._share(cloud))
        return Target(0, stop, temperature=temperature, settled=settled)

    def _share(self, cloud: Cloud) -> float:
        """The conditional ESS that leaves the ESS asked for, and in any case some way to go."""
        return min(self.ess * len(cloud) / cloud.ess, 0.95)


@dataclass(frozen=True)
class LikelihoodTempering(Annealing):
    """All the data at a rising temperature.

    Parameters
    ----------
    temperatures
        An increasing list that ends at 1, spread evenly over the iterations; or None: each is chosen so that the
        conditional ESS after re-weighting is ``ess`` of the particles, and the run ends once it reaches 1.
    ess
        Target of the adaptive choice, as a fraction of P (Zhou, Johansen and Aston, 2016, for the conditional ESS).
    """

    temperatures: Sequence[float] | None = None
    ess: float = 0.5

    def __post_init__(self) -> None:
        betas = self.temperatures
        if betas is not None and (len(betas) == 0 or np.any(np.diff(betas, prepend=0) <= 0) or betas[-1] != 1):
            raise ValueError(f"temperatures is {betas!r}; it must increase from above 0 to exactly 1")
        if not 0 < self.ess < 1:
            raise ValueError(f"ess is {self.ess!r}; it must lie between 0 and 1")

    def next_target(
        self, iteration: int, num_iterations: int, data: Sized, previous: Target, cloud: Cloud
    ) -> Target | None:
        """See `Annealing`."""
        if self.temperatures is not None:
            if num_iterations < len(self.temperatures):
                raise ValueError(
                    f"num_iterations is {num_iterations}; {len(self.temperatures)} temperatures need at least that many"
                )
            step = iteration * len(self.temperatures) // num_iterations
            return Target(0, len(data), temperature=float(self.temperatures[step]))
        if previous.temperature == 1.0:
            return None
        return replace(
            previous,
            temperature=_next_temperature(previous.temperature, cloud.likelihood(data, previous), cloud, self.ess),
        )

    @property
    def num_iterations(self) -> int | None:
        """See `Annealing`."""
        return None if self.temperatures is None else super().num_iterations

    def initial_target(self, num_data: int) -> Target:
        """The prior, with the likelihood of all the data known."""
        return Target(0, num_data, temperature=0.0)
