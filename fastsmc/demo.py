"""Annealing schemes side by side: same network, prior and particles, different data schedules.

Schemes of a given length have the same moves and iterations; those that end by themselves the sampler's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsmc import data, metrics
from fastsmc.data import Dataset
from fastsmc.progress import Progress
from fastsmc.trace import Trace

if TYPE_CHECKING:
    from rich.table import Table

    from fastsmc.result import Result
    from fastsmc.smc import SMC

BASELINE = "full"
TOLERANCE = 0.003  # within this distance of full batch's accuracy counts as reaching it


@dataclass(frozen=True)
class Preset:
    """What the demo runs on one data set."""

    load: Callable[[Path | None], Dataset]
    hidden: tuple[int, ...]
    particles: int
    iterations: int
    start: int
    likelihood_scale: str
    num_steps: int
    prior_scale: float | str


@dataclass(frozen=True)
class Scheme:
    """An annealing scheme as the command line offers it.

    ``make(fs, start, scale)`` takes the module, the first number of data points, and the likelihood scale of batches.
    """

    label: str
    make: Callable[[Any, int, str], Any]


SCHEMES = {
    "full": Scheme("full batch", lambda fs, start, scale: fs.FullBatch()),
    "data": Scheme("data annealing", lambda fs, start, scale: fs.DataAnnealing(start, likelihood_scale=scale)),
    "smooth": Scheme(
        "smooth data annealing", lambda fs, start, scale: fs.SmoothDataAnnealing(start, likelihood_scale=scale)
    ),
    "adaptive": Scheme("adaptive data annealing", lambda fs, start, scale: fs.AdaptiveDataAnnealing()),
    "mini": Scheme("mini-batch", lambda fs, start, scale: fs.MiniBatch(start, likelihood_scale=scale)),
    "tempering": Scheme("likelihood tempering", lambda fs, start, scale: fs.LikelihoodTempering()),
}


def _mnist(folder: Path | None) -> Dataset:
    if folder is None:
        raise ValueError("the mnist demo needs --data-dir, the folder of MNIST's four IDX files")
    return data.load_mnist(folder)._replace(name="MNIST")


PRESETS = {
    "digits": Preset(
        load=lambda _: data.load_digits(),
        hidden=(32,),
        particles=64,
        iterations=100,
        start=100,
        likelihood_scale="none",
        num_steps=10,
        prior_scale=0.5,
    ),
    "mnist": Preset(
        load=_mnist,
        hidden=(100,),
        particles=32,
        iterations=10,
        start=200,
        likelihood_scale="full",
        num_steps=15,
        prior_scale=0.2,
    ),
}


@dataclass
class Run:
    """One scheme's run, as far as it came."""

    scheme: str
    trace: Trace
    result: Result | None = None
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    interrupted: bool = False

    @property
    def label(self) -> str:
        """The scheme's name in words."""
        return SCHEMES[self.scheme].label

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures must know."""
        return self.notes + (self.result.warnings if self.result else [])

    def record(self, state: Result) -> None:
        """Take in the state after an iteration."""
        self.result = state
        self.trace(state)

    def time_to(self, accuracy: float) -> float:
        """Seconds until the test accuracy is first at least `accuracy`; NaN if it never is."""
        return first_time(self.trace["seconds"], self.trace["accuracy"], accuracy)


def first_time(seconds: Sequence[float], accuracy: Sequence[float], target: float) -> float:
    """When a curve of accuracies is first at least `target`; NaN if it never is."""
    reached = np.asarray(accuracy) >= target
    return float(seconds[reached.argmax()]) if reached.any() else math.nan


def sampler(scheme: str, dataset: Dataset, preset: Preset, seed: int) -> SMC:
    """Build the sampler of one scheme."""
    import fastsmc as fs

    posterior = fs.Posterior(
        fs.MLP([dataset.x_train.shape[1], *preset.hidden, dataset.classes]), prior=fs.Normal(preset.prior_scale)
    )
    annealing = SCHEMES[scheme].make(fs, preset.start, preset.likelihood_scale)
    move, iterations = fs.HMC(num_steps=preset.num_steps), preset.iterations
    if annealing.num_iterations is None:
        move = iterations = None
    return fs.SMC(posterior, preset.particles, annealing, move, iterations, seed=seed)


def run_schemes(
    schemes: Sequence[str], dataset: Dataset, preset: Preset, seed: int = 0, progress: bool = True
) -> list[Run]:
    """Run the schemes an iteration each in turn, so that the machine's moods touch all of them alike.

    Each is timed by its own clock. Where Ctrl-C or a degenerate cloud ends a run, it holds what there was.
    """
    from fastsmc.cloud import DegenerateError

    runs = [Run(scheme, Trace(dataset.x_test, dataset.y_test)) for scheme in schemes]
    active = {
        run.scheme: sampler(run.scheme, dataset, preset, seed).iterate(dataset.x_train, dataset.y_train) for run in runs
    }
    with Progress(None, progress, dataset.name) as bar:
        while active:
            for run in runs:
                if run.scheme not in active:
                    continue
                try:
                    run.record(next(active[run.scheme]))
                    bar.update(run.result.history.last)
                except StopIteration:
                    run.complete = True
                    del active[run.scheme]
                except DegenerateError as error:
                    run.notes.append(f"ended after {len(run.trace)} iterations: {error}")
                    del active[run.scheme]
                except KeyboardInterrupt:
                    for stopped in runs:
                        if stopped.scheme in active:
                            stopped.interrupted = True
                            stopped.notes.append(f"interrupted after {len(stopped.trace)} iterations")
                    return runs
    return runs


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run: quality, cost, health, and speed-ups over full batch where both ran to their end."""
    base = next((run for run in runs if run.scheme == BASELINE and run.complete), None)
    rows = []
    for run in runs:
        history = run.result.history
        row = {
            "scheme": run.label,
            "iterations": len(run.trace),
            **{name: run.trace.last[name] for name in ("accuracy", "nll", "ece")},
            "seconds": float(history["seconds"][-1]),
            "data_passes": float(history["data_passes"][-1]),
            "ess_min": float(history["ess"].min()),
            "ess_final": float(history["ess"][-1]),
            "distinct_ancestors_min": int(history["distinct_ancestors"].min()),
            "speedup": math.nan,
            "speedup_to_accuracy": math.nan,
            "warnings": run.warnings,
        }
        if base is not None and run.complete:
            target = base.trace.last["accuracy"] - TOLERANCE
            row["speedup"] = float(base.result.history["seconds"][-1]) / row["seconds"]
            row["speedup_to_accuracy"] = base.time_to(target) / run.time_to(target)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Lay the summary out for the terminal."""
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    grid.add_column("scheme")
    for heading in (
        "accuracy",
        "NLL",
        "ECE",
        "seconds",
        "data\npasses",
        "ESS\nmin",
        "ESS\nfinal",
        "distinct\nancestors\nmin",
        "speed-up",
        "speed-up to\nfull batch's\naccuracy",
    ):
        grid.add_column(heading, justify="right")
    for row in rows:
        grid.add_row(
            row["scheme"],
            f"{100 * row['accuracy']:.2f} %",
            f"{row['nll']:.3f}",
            f"{row['ece']:.3f}",
            f"{row['seconds']:.1f}",
            f"{row['data_passes']:.1f}",
            f"{row['ess_min']:.1f}",
            f"{row['ess_final']:.1f}",
            str(row["distinct_ancestors_min"]),
            *(f"{row[key]:.1f}x" if row[key] > 0 else "-" for key in ("speedup", "speedup_to_accuracy")),
        )
    return grid


def picture(runs: Sequence[Run], dataset: Dataset, path: Path, title: str) -> None:
    """Draw all runs into one figure."""
    from fastsmc.plotting import Curve, plot_comparison

    curves = [
        Curve(
            run.label,
            run.result.history,
            run.trace,
            metrics.reliability(*run.result.classify(dataset.x_test, dataset.y_test)),
        )
        for run in runs
    ]
    plot_comparison(curves, path, title)
