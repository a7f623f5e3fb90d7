"""A progress bar for the sampler: effective sample size, batch, quality of the step, time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Progress:
    """Shown on standard error where that is a terminal and `enabled` is true; silent otherwise.

    A total of None is one that nobody knows.

    >>> with Progress(total=60) as bar:
    ...     bar.update({"ess": 31.5, "batch_size": 500, "acceptance": 0.8})
    """

    def __init__(self, total: int | None, enabled: bool = True, description: str = "SMC") -> None:
        self._total, self._description = total, description
        self._bar = None
        self._enabled = enabled and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._enabled:
            from rich import console, progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[status]}"),
                progress.TimeRemainingColumn(),
                console=console.Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._total, status="")
        return self

    def update(self, row: Mapping[str, Any]) -> None:
        """Advance by one iteration; `row` is a line of the history."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, status=status(row))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Stopwatch:
    """Wall seconds since it was made, less those spent in ``paused``."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - begin


def status(row: Mapping[str, Any]) -> str:
    """Say what is worth watching in a line of the history."""
    acceptance = "" if math.isnan(row["acceptance"]) else f"  acceptance {row['acceptance']:.2f}"
    return f"ESS {row['ess']:.1f}  batch {row['batch_size']:,}{acceptance}"
