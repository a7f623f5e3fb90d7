"""How long the steps of a run are."""

from __future__ import annotations

import math

from fastsmc.annealing import Target
from fastsmc.batches import Data
from fastsmc.cloud import Cloud
from fastsmc.moves import Draw, Move, Outcome, acceptance_of

SEARCH = 2**32 - 1
"""The iteration whose random numbers the search for the first step takes."""


class StepSize:
    """The step size of a run: found at the first target, then adapted.

    After every move ``log step += gain * (acceptance - target acceptance)``; P particles make the acceptance of one
    move precise enough for a constant gain. Moves that do not compute their acceptance have their step shortened by as
    much as their momenta are hotter than ``hottest``. Without a preconditioner the step is scaled by the square root
    of the ratio of the data points that count when their number grows, as the curvature of the likelihood is; less than
    one counts as one, for the prior has a curvature too.
    """

    initial = 0.1
    gain = 0.7
    hottest = 1.2
    max_search = 60

    def __init__(self, move: Move) -> None:
        self.move = move
        self.adapts = move.step_size is None
        self.value = move.step_size

    def at(self, target: Target) -> float:
        """The step under a target."""
        return min(self.value, self.move.longest_step(target))

    def prepare(self, cloud: Cloud, data: Data, previous: Target, target: Target, draw: Draw) -> None:
        """Find the step for the first target, or scale it for the next one."""
        if cloud.information is None:
            self.move.start(cloud, data, target)
        if self.value is None:
            self.value = self._search(cloud, data, target, draw) if self.move.tells_step(target) else self.initial
        else:
            self.rescale(previous, target)

    def rescale(self, previous: Target, target: Target) -> None:
        """Shorten the step as more data count, unless a preconditioner does."""
        if self.adapts and not self.move.precondition and target.count > previous.count:
            self.value *= math.sqrt(max(previous.count, 1) / max(target.count, 1))

    def adapt(self, outcome: Outcome, target: Target) -> None:
        """Lengthen or shorten the step after a move."""
        if not self.adapts:
            return
        if self.move.tells_step(target):
            self.value *= math.exp(self.gain * (outcome.acceptance - self.move.aim))
        elif not outcome.heat <= self.hottest:  # or NaN
            excess = min(outcome.heat - self.hottest, 1.0) if math.isfinite(outcome.heat) else 1.0
            self.value = self.at(target) * math.exp(-self.gain * excess)

    def _search(self, cloud: Cloud, data: Data, target: Target, draw: Draw) -> float:
        """Double or halve until the acceptance of one step crosses its target."""

        def too_long(step: float) -> bool:
            ratio = probe.propose(cloud, data, target, step, draw).log_ratio
            cloud.momentum = None  # of the probe alone: the same numbers must not be mixed in again
            return acceptance_of(ratio, cloud) < probe.aim

        probe = self.move.probe()
        step, shrink = self.initial, too_long(self.initial)
        for _ in range(self.max_search):
            step *= 0.5 if shrink else 2.0
            if too_long(step) != shrink:
                break
        return step if shrink else step / 2
