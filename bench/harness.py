"""Measure several providers of one thing side by side: check that they agree, then time them in turn."""

from __future__ import annotations

import csv
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

OURS = "fastsmc"
RESULTS = Path(__file__).parent / "results"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds of one sample per provider, each sample long enough for the clock."""

    rounds: int = 40
    seconds: float = 20.0
    sample: float = 2e-3


QUICK = Effort(rounds=9, seconds=3.0)


@dataclass(frozen=True)
class Row:
    """One line of the results."""

    bench: str
    case: str
    provider: str
    median_us: float
    p20_us: float
    p80_us: float
    rounds: int
    ratio: float
    machine: str
    cores: int
    simd: str
    fastsmc: str
    torch: str
    jax: str
    numpy: str
    date: str


@cache
def machine() -> dict[str, Any]:
    """Say what the figures depend on besides the code."""
    from fastsmc import _cpu

    return {
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "simd": _cpu.simd_level(),
        **{name: version(name) for name in ("fastsmc", "torch", "jax", "numpy")},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def version(name: str) -> str:
    """Version of an installed package, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


class Bench:
    """Collects rows, prints a table per case, and writes them all at the end."""

    def __init__(self, name: str, effort: Effort) -> None:
        self.name, self.effort = name, effort
        self.rows: list[Row] = []
        self.console = Console()

    def case(
        self, name: str, providers: dict[str, Callable[[], Call]], agree: Callable[[Any, Any], None]
    ) -> None:
        """Measure one case.

        Parameters
        ----------
        name
            What is measured, with its sizes.
        providers
            For each a function that prepares it and returns the call to time; one whose import fails is left
            out, and that is printed.
        agree
            Raises if a provider's result is not the same thing as ours.
        """
        prepared = {
            provider: self._prepare(prepare, provider, name) for provider, prepare in providers.items()
        }
        calls = {provider: call for provider, call in prepared.items() if call is not None}
        truth = calls[OURS]()
        for provider in calls.keys() - {OURS}:
            agree(truth, calls[provider]())
        self._record(name, time_in_turn(calls, self.effort))

    def _prepare(self, prepare: Callable[[], Call], provider: str, case: str) -> Call | None:
        try:
            return prepare()
        except ImportError as error:
            if provider == OURS:
                raise
            self.console.print(f"{provider} is left out of {case}: {error}")
            return None

    def _record(self, case: str, samples: dict[str, list[float]]) -> None:
        ours = median(samples[OURS])
        best = min((median(s) for p, s in samples.items() if p != OURS), default=float("nan"))
        table = Table("provider", *("median", "p20", "p80"), "against ours", title=f"{self.name}: {case}")
        for provider, times in sorted(samples.items(), key=lambda item: median(item[1])):
            low, middle, high = (1e6 * float(t) for t in np.quantile(times, (0.2, 0.5, 0.8)))
            ratio = middle / (1e6 * ours)
            self.rows.append(
                Row(self.name, case, provider, middle, low, high, len(times), ratio, **machine())
            )
            table.add_row(provider, *(f"{t:,.1f} us" for t in (middle, low, high)), f"{ratio:.2f}x")
        table.caption = f"best peer / {OURS}: {best / ours:.2f}x"
        self.console.print(table)

    def write(self) -> None:
        """Write the rows to bench/results/."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                line = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
                writer.writerow(line)
        self.console.print(f"written: {path.relative_to(RESULTS.parent.parent)}")


def time_in_turn(calls: dict[str, Call], effort: Effort) -> dict[str, list[float]]:
    """Seconds per call, every provider once per round: a slow minute of the machine meets all of them."""
    repeats = {provider: _repeats(call, effort.sample) for provider, call in calls.items()}
    samples: dict[str, list[float]] = {provider: [] for provider in calls}
    end = time.perf_counter() + effort.seconds
    for done in range(effort.rounds):
        if done >= 5 and time.perf_counter() > end:
            break
        for provider, call in calls.items():
            begin = time.perf_counter()
            for _ in range(repeats[provider]):
                call()
            samples[provider].append((time.perf_counter() - begin) / repeats[provider])
    return samples


def _repeats(call: Call, sample: float) -> int:
    call()  # warm up
    begin = time.perf_counter()
    call()
    return max(1, round(sample / (time.perf_counter() - begin)))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
