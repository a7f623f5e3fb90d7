"""What the records say: one row a run, and medians over the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.harness import write_csv
from bench.study.grid import Run
from bench.study.records import Record
from fastsmc.demo import BASELINE, TOLERANCE, first_time

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Row:
    """One run.

    ``reference`` is full batch with the same move, or with HMC where the table has no such run, and the same seed;
    ``target`` its final test accuracy less `TOLERANCE`. ``seconds_to_target`` is when the run is first there,
    ``seconds_to_stay`` from when on it is never below, ``passes_to_target`` how often it has seen the data when it is
    first there, and ``speedup`` the reference's ``seconds_to_target`` over the run's: 0 where the run never gets there,
    NaN where there is no reference. ``ensemble_*`` is the deep ensemble when the run ended, or at its own end if that
    was earlier.
    """

    problem: str
    method: str
    label: str
    seed: int
    particles: int
    points: int
    accuracy: float
    nll: float
    ece: float
    seconds: float
    data_passes: float
    ess_min: float
    ess_final: float
    distinct_ancestors_min: float
    log_evidence: float
    collapsed: int
    reference: str
    target: float
    seconds_to_target: float
    seconds_to_stay: float
    passes_to_target: float
    speedup: float
    ensemble_seconds: float
    ensemble_accuracy: float
    ensemble_nll: float
    ensemble_ece: float
    ends_on: str
    notes: str
    warnings: str

    @property
    def name(self) -> str:
        """That of the run."""
        return f"{self.problem}/{self.method}/{self.seed}"


def time_to_stay(seconds: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """From when on a curve of accuracies is never below `target`; NaN if its end is."""
    below = np.flatnonzero(accuracy < target)
    first = below[-1] + 1 if len(below) else 0
    return float(seconds[first]) if first < len(seconds) else math.nan


def speed_up(reference: Record, record: Record) -> tuple[float, float, float, float]:
    """The target accuracy, when the record reaches it and when for good, and the ratio of the times to reach it."""
    target = reference.last("accuracy") - TOLERANCE
    base, ours = (first_time(r.looked("seconds"), r.looked("accuracy"), target) for r in (reference, record))
    stay = time_to_stay(record.looked("seconds"), record.looked("accuracy"), target)
    return target, ours, stay, 0.0 if math.isnan(ours) else base / ours


def at(record: Record, seconds: float) -> dict[str, float]:
    """The last point of a curve that is not after a time; NaN where there is none."""
    names = ("seconds", "accuracy", "nll", "ece")
    done = int(np.searchsorted(record.looked("seconds"), seconds, side="right"))
    return {name: float(record.looked(name)[done - 1]) if done else math.nan for name in names}


def reference_of(run: Run, records: Mapping[Run, Record]) -> Run | None:
    """The full-batch run that a run is held against."""
    same = (r for r in records if (r.problem, r.seed, r.method.scheme) == (run.problem, run.seed, BASELINE))
    by_move = {r.method.move: r for r in same}
    return by_move.get(run.method.move, by_move.get("hmc"))


def extreme(values: np.ndarray) -> float:
    """The least of a column; NaN where it holds nothing."""
    return float(np.nanmin(values)) if not np.isnan(values).all() else math.nan


def summarise(records: Mapping[Run, Record]) -> dict[Run, Row]:
    """A row for every run."""
    return {run: _row(run, record, records) for run, record in records.items()}


def _row(run: Run, record: Record, records: Mapping[Run, Record]) -> Row:
    reference = reference_of(run, records)
    ensemble = next(
        (r for r in records if (r.problem, r.seed, r.method.scheme) == (run.problem, run.seed, ENSEMBLE)), None
    )
    nothing = (math.nan,) * 4
    target, first, stay, ratio = nothing if reference is None else speed_up(records[reference], record)
    passes = float(np.interp(first, record.column("seconds"), record.column("data_passes")))
    other = nothing if ensemble is None else at(records[ensemble], record.last("seconds")).values()
    ancestors = record.column("distinct_ancestors")
    return Row(
        run.problem.name,
        run.method.name,
        run.method.label,
        run.seed,
        run.problem.preset.particles,
        len(record.column("seconds")),
        *(record.last(name) for name in ("accuracy", "nll", "ece", "seconds", "data_passes")),
        extreme(record.column("ess")),
        record.last("ess"),
        extreme(ancestors),
        record.last("log_evidence"),
        int((ancestors == 1).sum()),
        reference.name if reference else "",
        *(target, first, stay, passes, ratio),
        *other,
        ends_on(record),
        "; ".join(record.notes),
        "; ".join(record.warnings),
    )


def ends_on(record: Record) -> str:
    """Say which density the last particles represent; nothing for methods without one."""
    size, scale, temperature = (record.last(name) for name in ("batch_size", "likelihood_scale", "temperature"))
    if math.isnan(size):
        return ""
    weighted = f" times {scale:.4g}" if scale > 1 else ""
    return f"{size:,.0f} points{weighted}" + (f" at temperature {temperature:.3g}" if temperature < 1 else "")


def save(records: Mapping[Run, Record], path: Path) -> None:
    """Write the rows with the machines and versions that they were measured on."""
    rows = [asdict(row) | records[run].machine for run, row in summarise(records).items()]
    columns = [field.name for field in fields(Row)]
    columns += [name for name in dict.fromkeys(name for row in rows for name in row) if name not in columns]
    write_csv(path, rows, columns)


def middle(rows: Sequence[Row], name: str) -> float:
    """Median over seeds of a column; NaN, which stands for never or nothing, counts as the largest."""
    values: list[Any] = [getattr(row, name) for row in rows]
    found = median(math.inf if math.isnan(value) else value for value in values)
    return found if math.isfinite(found) else math.nan
