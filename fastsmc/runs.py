"""Several results as one: independent runs of a sampler, or states of one run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsmc import arrays
from fastsmc.checkpoint import Checkpoint
from fastsmc.result import Result
from fastsmc.sampler import Sampler


@dataclass(frozen=True)
class Runs:
    """Results of runs that differ by their seeds alone."""

    results: tuple[Result, ...]

    @property
    def log_evidence(self) -> float | None:
        """Log of the mean of the runs' evidence estimates, which are unbiased; None where they are none."""
        ratios = self._ratios()
        return None if ratios is None else self._largest + math.log(ratios.mean())

    @property
    def log_evidence_error(self) -> float | None:
        """Standard error of ``log_evidence`` from the scatter of the runs; None for a single one."""
        ratios = self._ratios()
        if ratios is None or len(ratios) < 2:
            return None
        return float(ratios.std(ddof=1) / math.sqrt(len(ratios)) / ratios.mean())

    def combined(self) -> Result:
        """All particles as one result, each run weighted by its evidence; equally where it has none.

        The history is that of the last run, but for the evidence at its end, which is that of all.
        """
        ratios = self._ratios()
        if ratios is None:
            return _together(self.results, np.ones(len(self.results)))
        pooled, error = _together(self.results, ratios), self.log_evidence_error
        end = {"log_evidence": self.log_evidence} | ({} if error is None else {"evidence_variance": error**2})
        return replace(pooled, history=pooled.history.with_last(**end))

    def to_arviz(self, x: Any = None, y: Any = None, **options: Any) -> Any:
        """For ArviZ, each run a chain: `fastsmc.integrations.arviz.to_arviz`."""
        from fastsmc.integrations import arviz

        return arviz.to_arviz(self, x, y, **options)

    @property
    def _largest(self) -> float:
        return max(r.log_evidence for r in self.results)

    def _ratios(self) -> np.ndarray | None:
        if any(r.log_evidence is None for r in self.results):
            return None
        return np.exp([r.log_evidence - self._largest for r in self.results])


def recycle(states: Iterable[Result]) -> Result:
    """The particles of several states of a run as one result, each state weighted by its effective sample size.

    Parameters
    ----------
    states
        As `SMC.iterate` yields them; all must represent the same target, as the last iterations of a scheme do that
        stays at the full posterior.

    Raises
    ------
    ValueError
        If there is no state, or if their targets differ.
    """
    states = tuple(states)
    targets = {(s.target.start, s.target.stop, s.target.power, s.target.bridges) for s in states}
    if len(targets) != 1:
        raise ValueError(f"states hold {len(targets)} different targets; there must be one, that of the last states")
    return _together(states, np.array([s.ess for s in states]))


def _together(results: Sequence[Result], shares: np.ndarray) -> Result:
    """All particles, with their weights times their result's share; the rest is the last result's."""
    with np.errstate(divide="ignore"):
        logs = np.log(shares / shares.sum())
    back = arrays.kind_of(results[-1].particles, "particles")
    rows, columns = ([arrays.on_host(getattr(r, name), name) for r in results] for name in ("particles", "log_weights"))
    particles = back(np.concatenate(rows))
    log_weights = back(np.concatenate([column + log for column, log in zip(columns, logs, strict=True)]))
    said = list(dict.fromkeys(text for r in results for text in r.warnings))
    return replace(results[-1], particles=particles, log_weights=log_weights, warnings=said, genealogy=None)


def run_many(smc: Sampler, x: Any, y: Any, seeds: Iterable[int] = range(4), **options: Any) -> Runs:
    """Run a sampler once for each seed.

    Parameters
    ----------
    smc
        The sampler; its own seed is not used.
    x, y, options
        As for `SMC.run`, but for ``checkpoint``: each run has a folder of its own there, of its seed's name.
    seeds
        At least one; all different.

    Raises
    ------
    ValueError
        If there is no seed, or one twice.
    """
    chosen = list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds is {chosen!r}; it must hold at least one number, and none twice")
    plan, results = Checkpoint.of(options.pop("checkpoint", None)), []
    for seed in chosen:
        one = copy.copy(smc)
        one.seed = seed
        keep = plan and replace(plan, folder=Path(plan.folder) / str(seed))
        results.append(one.run(x, y, checkpoint=keep, **options))
    return Runs(tuple(results))
