"""Measure several providers of one thing side by side: check that they agree, then time them in turn."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.table import Table

from fastsmc import environment, ops

OURS, LIMIT = "fastsmc", "limit"
GRAPH = ", as a graph"
"""Behind the name of a provider whose calls are replayed."""
RESULTS = Path(__file__).parent / "results"
PAUSE = 0.02  # seconds, in which the threads of the provider before go to sleep
Call = Callable[[], Any]
Prepare = Callable[..., Call]


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
    rate: float
    unit: str
    share_of_limit: float
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
        "machine": environment.processor(),
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


COLUMNS = [field.name for field in fields(Row)]


@dataclass(frozen=True)
class Work:
    """What a case needs at least, and a call that does as much of that per second as the machine can."""

    amount: float
    unit: str
    limit: Prepare
    args: tuple = ()

    @classmethod
    def of(cls, flops: float, moved_bytes: float, precision: str) -> Work | None:
        """Arithmetic where there is some, memory traffic otherwise."""
        if flops:
            return cls(flops, "GF/s", _multiply_adds, (ops.PRECISIONS.index(precision),))
        return cls(moved_bytes, "GB/s", _copy) if moved_bytes else None


def _multiply_adds(precision: int) -> Call:
    """Multiplications and additions in registers, on all cores; returns how many."""
    from fastsmc import _cpu

    return lambda: _cpu.multiply_adds(100_000, precision)


def _copy(size: int = 1 << 27) -> Call:
    """Returns how many bytes are read and written."""
    import torch

    a, b = torch.zeros(2, size // 4)

    def call() -> float:
        b.copy_(a)
        return 2.0 * size

    return call


class Bench:
    """Prints a table per case, and writes its rows to bench/results/ in place of those that the case had, if wanted.

    A peer that fails is left out, and so is a case in which ours does or results differ; ``failed`` has both.
    """

    failed: ClassVar[list[str]] = []

    def __init__(self, name: str, effort: Effort, keep: bool) -> None:
        self.name, self.effort, self.keep = name, effort, keep
        self.rows: list[Row] = []
        self.console = Console()

    def case(
        self,
        name: str,
        providers: Mapping[str, Prepare],
        args: tuple,
        agree: Callable[[Any, Any], None],
        *,
        flops: float = 0.0,
        moved_bytes: float = 0.0,
        precision: str = "highest",
    ) -> list[Row]:
        """Measure one case.

        Parameters
        ----------
        name
            What is measured, with its sizes.
        providers
            For each a module's function that takes `args` and returns the call to time. One whose import
            fails is left out, and that is printed. Names that begin with ours are variants of ours, not peers.
        args
            The problem, the same for all.
        agree
            Raises if a provider's result is not the same thing as ours.
        flops, moved_bytes
            What the work needs at least. The rates are then set against the machine's limit, which is measured in
            turn with the providers: multiplications and additions in registers, or a copy by torch.
        precision
            Of these multiplications.
        """
        work = Work.of(flops, moved_bytes, precision)
        with ExitStack() as stack:
            workers = {p: stack.enter_context(Worker(prepare, args, self.effort)) for p, prepare in providers.items()}
            if work:
                workers[LIMIT] = stack.enter_context(Worker(work.limit, work.args, self.effort))
            for provider in [p for p, worker in workers.items() if worker.missing]:
                error = workers.pop(provider).missing
                self.console.print(f"{provider} is left out of {name}: {error}")
                if not isinstance(error, ImportError):
                    self._fail(f"{provider}, {name}", error)
            if OURS not in workers:
                return []
            try:
                for provider in workers.keys() - {OURS, LIMIT}:
                    agree(workers[OURS].result, workers[provider].result)
            except AssertionError as error:
                self._fail(name, error)
                return []
            samples = time_in_turn(workers, self.effort)
            limit = float(workers[LIMIT].result) / min(samples.pop(LIMIT)) if LIMIT in workers else float("nan")
            return self._record(name, samples, work, limit)

    def _fail(self, what: str, error: Exception) -> None:
        self.failed.append(f"{self.name}: {what}: {error}")
        self.console.print(f"[red]{self.failed[-1]}")

    def _record(self, case: str, samples: dict[str, list[float]], work: Work | None, limit: float) -> list[Row]:
        ours = median(samples[OURS])
        best = min((median(s) for p, s in samples.items() if not p.startswith(OURS)), default=float("nan"))
        unit = work.unit if work else ""
        columns = ("median", "p20", "p80", "against ours", unit or "rate", "of the limit")
        table = Table("provider", *columns, title=f"{self.name}: {case}")
        rows = []
        for provider, times in sorted(samples.items(), key=lambda item: median(item[1])):
            low, middle, high = (1e6 * float(t) for t in np.quantile(times, (0.2, 0.5, 0.8)))
            rate = work.amount / (1e-6 * middle) if work else float("nan")
            figures = (middle, low, high, len(times), middle / (1e6 * ours), rate / 1e9, unit, rate / limit)
            row = Row(self.name, case, provider, *figures, **machine())
            cells = (f"{row.rate:.1f}", f"{row.share_of_limit:.0%}") if work else ("", "")
            table.add_row(provider, *(f"{t:,.1f} us" for t in (middle, low, high)), f"{row.ratio:.2f}x", *cells)
            rows.append(row)
        self.rows += rows
        if self.keep:
            replace_lines(RESULTS / f"{self.name}.csv", [asdict(row) for row in rows], ("case",), COLUMNS)
        table.caption = f"best peer / {OURS}: {best / ours:.2f}x"
        self.console.print(table)
        return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table, its numbers to four digits; also into the folder that OUT names, which outlives a lent device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    if out := os.environ.get("OUT"):
        shutil.copy(path, Path(out) / path.name)


def replace_lines(
    path: Path, lines: Sequence[Mapping[str, Any]], keys: Sequence[str], columns: Sequence[str] = ()
) -> None:
    """Write lines to a table, in place of those that agree with one of them in all keys, or to a new one."""
    there: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns, there = list(reader.fieldnames or ()), list(reader)

    def key(line: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(line[name]) for name in keys)

    new = {key(line) for line in lines}
    write_csv(path, [line for line in there if key(line) not in new] + list(lines), columns)


class Worker:
    """A provider in a process of its own: idle thread pools of one would spin on the cores of the next."""

    def __init__(self, prepare: Prepare, args: tuple, effort: Effort) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, args, effort.sample), daemon=True)
        self._process.start()
        theirs.close()
        self.result = self._pipe.recv()
        self.missing = self.result if isinstance(self.result, Exception) else None

    def sample(self) -> float:
        """Seconds per call."""
        self._pipe.send(True)
        return self._pipe.recv()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, prepare: Prepare, args: tuple, sample: float) -> None:
    """Send the result, then answer every message with one timing, until the other end is closed."""
    try:
        call = prepare(*args)
        pipe.send(_as_numpy(call()))
    except Exception as error:
        pipe.send(error if isinstance(error, ImportError) else RuntimeError(f"{type(error).__name__}: {error}"))
        return
    begin = time.perf_counter()
    call()
    repeats = max(1, round(sample / (time.perf_counter() - begin)))
    with suppress(EOFError):
        while pipe.recv():
            call()  # the caches are the others' by now
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            pipe.send((time.perf_counter() - begin) / repeats)


def _as_numpy(result: Any) -> Any:
    return tuple(map(_as_numpy, result)) if isinstance(result, tuple | list) else np.asarray(result)


def time_in_turn(workers: Mapping[str, Worker], effort: Effort) -> dict[str, list[float]]:
    """Time every provider once per round: a slow minute of the machine meets all of them."""
    samples: dict[str, list[float]] = {provider: [] for provider in workers}
    end = time.perf_counter() + effort.seconds
    for done in range(effort.rounds):
        if done >= 5 and time.perf_counter() > end:
            break
        for provider, worker in workers.items():
            time.sleep(PAUSE)
            samples[provider].append(worker.sample())
    return samples
