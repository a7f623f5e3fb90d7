"""What every method offers, and ours: annealing schemes with moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

import fastsmc as fs
from bench.study.problems import Problem
from fastsmc.annealing import PRIOR, Target
from fastsmc.data import Dataset
from fastsmc.demo import SCHEMES
from fastsmc.moves import Move
from fastsmc.result import History, Result

HEALTH = (
    *("iteration", "batch_size", "likelihood_scale", "temperature", "ess", "distinct_ancestors"),
    *("step_size", "acceptance", "log_evidence"),
)
"""Columns of a curve that only some methods fill; those of ``fastsmc.History``."""

MOVES: dict[str, Callable[[int], Move]] = {
    "hmc": lambda steps: fs.HMC(num_steps=steps),
    "mala": lambda steps: fs.MALA(num_moves=steps),
    "langevin": lambda steps: fs.Langevin(num_moves=steps),
    "kinetic": lambda steps: fs.KineticLangevin(num_steps=max(steps // 2, 1), num_moves=2, precondition=True),
    "sghmc": lambda steps: fs.SGHMC(),
}
"""By the number of gradients of an iteration, which is the same for all but SGHMC, whose are of parts of the batch."""


class State(NamedTuple):
    """Where a method is: its clock, its work, how it predicts now, what it says of itself."""

    seconds: float
    data_passes: float
    predict: Callable[[np.ndarray], Any]
    health: dict[str, float]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to predictions. Its clock stands still while the taker of a state looks at it."""

    share: float = 1.0
    """Of the problem's budget."""
    subset: int | None = None
    """So many of the training data, the first ones, instead of all."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Modules besides fastsmc's own dependencies."""
    scheme: ClassVar[str]
    move: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """Unique within a problem."""
        return self.scheme + (f"-n{self.subset}" if self.subset else "")

    @property
    def label(self) -> str:
        """In words."""
        raise NotImplementedError

    @property
    def remark(self) -> str:
        """What part of the data it saw, where not all."""
        return f" on {self.subset:,} points" if self.subset else ""

    def data_passes(self, problem: Problem) -> float:
        """How many it is going to make; infinity where it goes on or decides on the way."""
        return math.inf

    def sample(self, problem: Problem, dataset: Dataset, seed: int) -> Iterator[State]:
        """Run, without regard to the budget."""
        raise NotImplementedError


@dataclass(frozen=True)
class Annealed(Method):
    """One of the demo's schemes with a move; every iteration costs as many gradients as every other scheme's."""

    scheme: str
    move: str = "hmc"
    scale: str = ""
    """The likelihood scale of batches, for schemes that have a choice."""
    start: int | None = None
    """Points in the first batch; the problem's own unless given."""
    length: float = 1.0
    """Iterations, as a multiple of the problem's."""

    @property
    def name(self) -> str:
        parts = (self.scheme, self.scale, self.move, f"x{self.length:g}" * (self.length != 1))
        return "-".join(filter(None, parts)) + (f"-n{self.subset}" if self.subset else "")

    @property
    def label(self) -> str:
        scaled = ", scaled to N" if self.scale == "full" else ""
        longer = f", {self.length:g}x iterations" if self.length != 1 else ""
        return f"{SCHEMES[self.scheme].label}{scaled}, {self.move}{longer}{self.remark}"

    def sampler(self, problem: Problem, seed: int) -> fs.SMC:
        preset = problem.preset
        annealing = SCHEMES[self.scheme].make(fs, self.start or preset.start, self.scale)
        iterations = None if annealing.num_iterations is None else round(self.length * preset.iterations)
        move = MOVES[self.move](preset.num_steps)
        return fs.SMC(problem.posterior, preset.particles, annealing, move, iterations, seed=seed)

    def data_passes(self, problem: Problem) -> float:
        smc, previous, points = self.sampler(problem, 0), PRIOR, 0
        rows = self.subset or problem.rows
        if smc.num_iterations is None or self.move == "sghmc":  # an adaptive scheme, or parts of the batch
            return math.inf
        for iteration in range(smc.num_iterations):
            previous = smc.annealing.next_target(iteration, smc.num_iterations, range(rows), previous, cloud=None)
            points += previous.batch_size
        return points * problem.preset.num_steps / problem.rows

    def sample(self, problem: Problem, dataset: Dataset, seed: int) -> Iterator[State]:
        for result in self.sampler(problem, seed).iterate(dataset.x_train, dataset.y_train):
            last = result.history.last
            health = {column: float(last[column]) for column in HEALTH}
            yield State(last["seconds"], last["data_passes"], result.predict_proba, health, result.warnings)


def weighted(problem: Problem, particles: np.ndarray, weights: np.ndarray | None = None) -> Result:
    """Particles of another sampler as ours, to predict with; of equal weight unless given."""
    weights = np.full(len(particles), 1 / len(particles)) if weights is None else weights / weights.sum()
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    posterior = Target(0, problem.rows)
    return Result(particles, log_weights, problem.posterior, posterior, problem.rows, History())
