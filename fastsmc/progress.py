"""How far a run is: a line that is updated in terminals and notebooks, and the log."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from fastsmc import logs


class Display(Protocol):
    """Shows the state of a run, and each newer one in its place."""

    def show(self, done: int, status: str) -> None:
        """Show that so many iterations are done."""

    def close(self) -> None:
        """Leave the screen as it should be after the run."""


class Terminal:
    """A bar of rich's on standard error, which goes when the run ends."""

    def __init__(self, total: int | None, description: str) -> None:
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
        self._task = self._bar.add_task(description, total=total, status="")

    def show(self, done: int, status: str) -> None:
        """See `Display`."""
        self._bar.update(self._task, completed=done, status=status)

    def close(self) -> None:
        """See `Display`."""
        self._bar.stop()


class Notebook:
    """A line of text below the cell, which stays; it needs no widgets, which not every notebook has."""

    interval = 0.2
    """Seconds between two updates, each of which is a message to the browser."""

    def __init__(self, total: int | None, description: str) -> None:
        from IPython.display import Pretty, display

        self._text, self._total, self._description = Pretty, total, description
        self._begin, self._next, self._line = time.monotonic(), 0.0, description
        self._handle = display(Pretty(description), display_id=True)

    def show(self, done: int, status: str) -> None:
        """See `Display`."""
        seconds = time.monotonic() - self._begin
        of = "" if self._total is None else f"/{self._total}"
        self._line = f"{self._description} {done}{of}  {status}  {seconds:.0f} s"
        if seconds >= self._next:
            self._handle.update(self._text(self._line))
            self._next = seconds + self.interval

    def close(self) -> None:
        """See `Display`."""
        self._handle.update(self._text(self._line))


def display_here() -> type[Terminal] | type[Notebook] | None:
    """What can show a run here; None in scripts whose standard error is a file or a pipe, which are to stay quiet."""
    if sys.stderr is not None and sys.stderr.isatty():
        return Terminal
    if "IPython" in sys.modules:
        from rich.console import Console

        return Notebook if Console().is_jupyter else None
    return None


class Progress:
    """Tells how far a run is: each iteration to the log, and on a screen where there is one and `enabled` is true.

    A total of None is one that nobody knows.

    >>> with Progress(total=60) as bar:
    ...     bar.update({"iteration": 0, "ess": 31.5, "batch_size": 500, "acceptance": 0.8})
    """

    def __init__(self, total: int | None, enabled: bool = True, description: str = "SMC") -> None:
        self._total, self._description, self._enabled = total, description, enabled
        self._display: Display | None = None
        self._done = 0

    def __enter__(self) -> Progress:
        if self._enabled and (display := display_here()) is not None:
            self._display = display(self._total, self._description)
        return self

    def update(self, row: Mapping[str, Any]) -> None:
        """Advance by one iteration; `row` is a line of the history."""
        self._done += 1
        state = status(row)
        logs.emit(logging.DEBUG, "iteration", f"{self._description} iteration {row['iteration']}: {state}", **row)
        if self._display is not None:
            self._display.show(self._done, state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.close()


class Stopwatch:
    """Wall seconds since it was made, and some before that; it stands still in ``paused``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._begin = time.perf_counter() - seconds
        self._stopped: float | None = None

    def seconds(self) -> float:
        """Seconds so far."""
        now = time.perf_counter() if self._stopped is None else self._stopped
        return now - self._begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        self._stopped = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - self._stopped
            self._stopped = None


def status(row: Mapping[str, Any]) -> str:
    """Say what is worth watching in a line of the history."""
    acceptance = "" if math.isnan(row["acceptance"]) else f"  acceptance {row['acceptance']:.2f}"
    return f"ESS {row['ess']:.1f}  batch {row['batch_size']:,}{acceptance}"
