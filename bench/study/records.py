"""A finished run: its curve, and the file that keeps it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import machine, version
from bench.study.grid import Run
from bench.study.methods import HEALTH
from fastsmc import DegenerateError, metrics
from fastsmc.data import Dataset
from fastsmc.files import write_atomically

FORMAT = 1
COLUMNS = ("seconds", "data_passes", "accuracy", "nll", "ece", *HEALTH)


@dataclass(frozen=True)
class Record:
    """What a run leaves.

    ``curve`` holds a list for each of `COLUMNS`, None where a method has no such figure; ``reliability`` the three
    columns of ``metrics.Reliability`` at the end.
    """

    settings: dict[str, Any]
    curve: dict[str, list[float | None]]
    reliability: list[list[float]]
    warnings: list[str]
    """Of the method itself."""
    notes: list[str]
    """Why it ended early."""
    machine: dict[str, Any]
    format: int = FORMAT

    def column(self, name: str) -> np.ndarray:
        """Of the curve; NaN where there is no figure."""
        return np.array(self.curve[name], np.float64)

    def looked(self, name: str) -> np.ndarray:
        """A column where the test data were looked at."""
        return self.column(name)[~np.isnan(self.column("accuracy"))]

    def last(self, name: str) -> float:
        """At the end of the curve."""
        return float(self.column(name)[-1])


def follow(run: Run, dataset: Dataset) -> Record:
    """Run until it ends or its budget is used up.

    The test data are looked at while its clock stands still: at the end, and before it after every hundredth of the
    budget at most.
    """
    if run.method.subset:
        rows = slice(run.method.subset)
        dataset = dataset._replace(x_train=dataset.x_train[rows], y_train=dataset.y_train[rows])
    curve: dict[str, list[float | None]] = {name: [] for name in COLUMNS}
    state, notes, due = None, [], 0.0
    with closing(run.method.sample(run.problem, dataset, run.seed)) as states:
        try:
            for state in states:
                figures = {"seconds": state.seconds, "data_passes": state.data_passes, **state.health}
                if state.seconds >= due:
                    figures |= quality(np.asarray(state.predict(dataset.x_test)), dataset.y_test)
                    due = state.seconds + run.budget / 100
                for name, values in curve.items():
                    values.append(figures.get(name))
                if state.seconds >= run.budget:
                    notes = [f"ended by its budget of {run.budget:g} s"]
                    break
        except DegenerateError as error:
            if state is None:
                raise
            notes = [f"ended after {state.seconds:.3g} s: {error}"]
    proba = np.asarray(state.predict(dataset.x_test))
    for name, value in quality(proba, dataset.y_test).items():
        curve[name][-1] = value
    reliability = [np.nan_to_num(column).tolist() for column in metrics.reliability(proba, dataset.y_test)]
    surroundings = machine() | {"threads": torch.get_num_threads(), "blackjax": version("blackjax")}
    return Record(run.settings, curve, reliability, state.warnings, notes, surroundings)


def quality(proba: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Of predicted probabilities."""
    return {
        "accuracy": metrics.accuracy(proba, y),
        "nll": metrics.negative_log_likelihood(proba, y),
        "ece": metrics.expected_calibration_error(proba, y),
    }


def write(record: Record, path: Path) -> None:
    """As a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(record)).encode())


def read(path: Path, run: Run) -> Record:
    """The record of a run; a sentence in a ValueError where the file holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is not a whole run file: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a run file of format {FORMAT}")
    if content.get("settings") != run.settings:
        raise ValueError(f"{path.name} was made with other settings than the table's {run.name} has now")
    return Record(**content)


def finished(runs: list[Run], out: Path) -> tuple[dict[Run, Record], list[str]]:
    """The records that a folder holds of the runs, and why a file in it does not count."""
    found, complaints = {}, []
    for run in runs:
        if (path := out / run.file).exists():
            try:
                found[run] = read(path, run)
            except ValueError as error:
                complaints.append(str(error))
    return found, complaints
