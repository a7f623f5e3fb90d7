"""Pictures of runs; matplotlib is imported when one is drawn, and no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastsmc.metrics import Reliability

PALETTE = ("#3d405b", "#e07a2f", "#2a7f9e", "#7a9e3f", "#a2417e", "#c9a227")
INK, GRID = "#333333", "#e3e3e3"

History = Mapping[str, np.ndarray]


class Curve(NamedTuple):
    """One run of a comparison."""

    label: str
    history: History
    accuracy: Sequence[float]
    """On the test data, after each iteration."""
    reliability: Reliability


def plot_history(history: History, path: str | Path, title: str = "") -> None:
    """Draw one run: data schedule, effective sample size, step size and acceptance."""
    figure, ((schedule, ess), (step, quality)) = figure_of(title)
    colour = PALETTE[2]
    _draw_schedule(schedule, history, colour)
    _draw_ess(ess, history, colour)
    _legend_of_lines(ess)
    step.plot(history["iteration"], history["step_size"], color=colour)
    step.set(title="Step size", xlabel="iteration", yscale="log")
    quality.plot(history["iteration"], history["acceptance"], color=colour)
    quality.set(title="Acceptance", xlabel="iteration", ylim=(0, 1))
    figure.savefig(path)


def plot_comparison(curves: Sequence[Curve], path: str | Path, title: str = "") -> None:
    """Draw several runs: data schedule, effective sample size, accuracy against time, and calibration."""
    figure, ((schedule, ess), (accuracy, calibration)) = figure_of(title)
    calibration.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1)
    for curve, colour in zip(curves, PALETTE, strict=False):
        _draw_schedule(schedule, curve.history, colour)
        _draw_ess(ess, curve.history, colour)
        accuracy.plot(curve.history["seconds"], curve.accuracy, color=colour, label=curve.label)
        confidence, correct, count = (column[curve.reliability.count > 0] for column in curve.reliability)
        calibration.plot(confidence, correct, color=colour, linewidth=1)
        calibration.scatter(confidence, correct, 4 + 200 * count / count.sum(), color=colour, clip_on=False)
    _legend_of_lines(ess)
    best = max(max(curve.accuracy) for curve in curves)
    accuracy.set(title="Test accuracy", xlabel="seconds", ylim=(max(0.0, best - 0.4), min(1.0, best + 0.02)))
    accuracy.legend(loc="lower right", frameon=False)
    calibration.set(title="Calibration (area: share of predictions)", xlim=(0, 1), ylim=(0, 1))
    calibration.set(xlabel="confidence", ylabel="accuracy")
    figure.savefig(path)


def _draw_schedule(axes: Axes, history: History, colour: str) -> None:
    axes.step(history["iteration"], history["batch_size"], where="mid", color=colour)
    axes.set(title="Data points in the likelihood", xlabel="iteration", yscale="log")


def _draw_ess(axes: Axes, history: History, colour: str) -> None:
    axes.plot(history["iteration"], history["ess"], color=colour)
    axes.plot(history["iteration"], history["distinct_ancestors"], color=colour, linestyle=":")
    axes.set(title="Particles that count", xlabel="iteration")
    axes.set_ylim(0, 1.2 * max(axes.dataLim.y1, 1))


def _legend_of_lines(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    styles = {"effective sample size": "-", "distinct ancestors": ":"}
    handles = [Line2D([], [], color=INK, linestyle=style, label=label) for label, style in styles.items()]
    axes.legend(handles=handles, loc="upper right", ncols=2, frameon=False)


def figure_of(title: str, rows: int = 2, columns: int = 2) -> tuple[Figure, np.ndarray]:
    """An empty figure and its panels, [rows, columns]."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a picture needs matplotlib: pip install 'fastsmc[plot]'") from None
    figure = Figure(figsize=(5 * columns, 3.2 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=INK)
    figure.suptitle(title, color=INK, fontsize=14)
    return figure, grid
