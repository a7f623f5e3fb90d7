"""Pictures of runs; matplotlib is imported when one is drawn, and no display is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastsmc import arrays, genealogy, metrics, sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastsmc.metrics import Reliability
    from fastsmc.result import Result

# Okabe and Ito, "Color universal design" (2008): told apart with every kind of colour vision
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, AXIS, FAINT, GRID = "#333333", "#999999", "#d0d0d0", "#e3e3e3"
BLUE, ORANGE = PALETTE[:2]
FEW = 20
"""Points of a line that are shown each."""

History = Mapping[str, np.ndarray]


class Picture(NamedTuple):
    """One panel."""

    title: str
    caption: str
    """How to read it."""
    draw: Callable[[Axes], None]


class Curve(NamedTuple):
    """One run of a comparison."""

    label: str
    history: History
    trace: History
    """On the test data, after each iteration."""
    reliability: Reliability


def pictures(result: Result, x: Any = None, y: Any = None, trace: History | None = None) -> list[Picture]:
    """All that a result has a picture of; some need test data x and y, some the trace of a run on them."""
    if (x is None) != (y is None):
        raise ValueError(f"{'x' if x is None else 'y'} is None; x and y must be given together, or neither of them")
    history = result.history
    return [
        *_of_sampler(history),
        *(_of_lineages(result.genealogy, history) if result.genealogy else ()),
        *(_of_trace(trace) if trace is not None and len(trace) else ()),
        *(() if x is None else _of_predictions(result, x, y)),
        *_of_moves(history),
    ]


def plot_run(
    result: Result,
    path: str | Path | None = None,
    x: Any = None,
    y: Any = None,
    trace: History | None = None,
    title: str = "",
) -> Figure:
    """Draw one run, all its pictures in one figure; see `Result.plot`."""
    panels = pictures(result, x, y, trace)
    figure, grid = figure_of(title, -(-len(panels) // 2))
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel.draw(axes)
        _entitle(axes, panel.title)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if path is not None:
        figure.savefig(path)
    return figure


def plot_comparison(curves: Sequence[Curve], path: str | Path, title: str = "") -> None:
    """Draw several runs: data schedule, effective sample size, accuracy against time, and calibration."""
    figure, ((schedule, particles), (accuracy, calibration)) = figure_of(title)
    for curve, colour in zip(curves, PALETTE, strict=False):
        _draw_schedule(schedule, curve.history, colour)
        _draw_particles(particles, curve.history, colour, colour)
        accuracy.plot(curve.trace["seconds"], 100 * curve.trace["accuracy"], color=colour, label=curve.label)
        _draw_reliability(calibration, curve.reliability, colour)
    best = 100 * max(curve.trace["accuracy"].max() for curve in curves)
    _entitle(schedule, "Data points in the likelihood")
    _entitle(particles, "Particles that count")
    _entitle(accuracy, "Test accuracy")
    _entitle(calibration, "Calibration (area: share of predictions)")
    accuracy.set(xlabel="seconds", ylabel="%")
    _near_best(accuracy, best)
    accuracy.legend(loc="lower right", frameon=False)
    figure.savefig(path)


def _of_sampler(history: History) -> list[Picture]:
    """What the sampler says of itself."""
    tempered = np.ptp(history["batch_size"]) == 0 and np.ptp(history["temperature"]) > 0
    return [
        Picture(
            "Temperature of the likelihood",
            "The power of the likelihood at each iteration; at 1 the particles target the posterior.",
            partial(_draw_column, history=history, name="temperature", ylim=(0, 1.05)),
        )
        if tempered
        else Picture(
            "Data points in the likelihood",
            "How many data points the target of each iteration uses; early iterations are cheap where it is low.",
            partial(_draw_schedule, history=history, colour=BLUE),
        ),
        Picture(
            "Particles that count",
            "Effective sample size of the weights, and how many distinct particles each resampling kept; where either "
            "comes close to one, the cloud has collapsed.",
            partial(_draw_particles, history=history, colour=BLUE, other=ORANGE),
        ),
    ]


def _of_moves(history: History) -> list[Picture]:
    """What the moves say of themselves."""
    caption = "Length of the steps of the moves, which adapts; one that shrinks to nothing moves no particle."
    found = [Picture("Step size", caption, partial(_draw_step_size, history=history))]
    if np.isfinite(history["acceptance"]).any():
        caption = "Mean probability that a move is accepted; gaps are moves that do not compute it."
        draw = partial(_draw_column, history=history, name="acceptance", ylim=(0, 1.05))
        found.append(Picture("Acceptance", caption, draw))
    return found


def _of_lineages(parents: Sequence[np.ndarray], history: History) -> list[Picture]:
    founders = int(genealogy.with_descendants(parents)[0].sum())
    caption = (
        f"Lines go from parents to children, left to right. Dark ones lead to the {len(parents[0]):,} final particles, "
        f"which descend from {founders:,} of those at the start; light ones died out. The later the dark lines part, "
        "the less the particles are independent."
    )
    draw = partial(_draw_lineages, parents=parents, start=history["iteration"][0] - 1)
    return [Picture("Genealogy of the particles", caption, draw)]


def _of_trace(trace: History) -> list[Picture]:
    """Quality on test data against time."""
    names = {
        "accuracy": ("Test accuracy", "%", 100.0),
        "rmse": ("Test error, root mean square", "units of the target", 1.0),
        "nll": ("Test negative log-likelihood", "nats a row", 1.0),
    }
    return [
        Picture(
            title,
            f"{title} after each iteration, against the seconds that the sampler had taken by then.",
            partial(_draw_quality, trace=trace, name=name, unit=unit, factor=factor),
        )
        for name, (title, unit, factor) in names.items()
        if name in trace
    ]


def _of_predictions(result: Result, x: Any, y: Any) -> list[Picture]:
    """How predictions of test data compare with the truth, where they are of the same kind."""
    if not result.classifies:
        truth, mean = (np.ravel(arrays.on_host(a, "y")) for a in (sources.table(y, "y"), result.predict(x)))
        caption = "Each point is a test value; on the line the posterior mean is exact."
        draw = partial(_draw_predictions, truth=truth, mean=mean)
        return [Picture("Prediction against truth", caption, draw)] if truth.shape == mean.shape else []
    caption = (
        "Test predictions in bins of their confidence, areas by their number; above the line the network is right more "
        "often than it claims, below it less often."
    )
    reliability = metrics.reliability(*result.classify(x, y))
    return [Picture("Calibration", caption, partial(_draw_reliability, reliability=reliability, colour=BLUE))]


def _draw_column(axes: Axes, history: History, name: str, **shape: Any) -> None:
    axes.plot(history["iteration"], history[name], ".-" if len(history[name]) < FEW else "-", color=BLUE)
    axes.update_datalim([(i, np.nanmean(history[name])) for i in history["iteration"][[0, -1]]])
    axes.set(xlabel="iteration", **shape)


def _draw_step_size(axes: Axes, history: History) -> None:
    _draw_column(axes, history, "step_size")
    _log_scale(axes, "{x:g}")


def _draw_schedule(axes: Axes, history: History, colour: str) -> None:
    axes.step(history["iteration"], history["batch_size"], where="mid", color=colour)
    axes.set(xlabel="iteration", ylabel="data points")
    _log_scale(axes, "{x:,.0f}")


def _draw_particles(axes: Axes, history: History, colour: str, other: str) -> None:
    axes.plot(history["iteration"], history["ess"], color=colour)
    kept = history["resampled"].astype(bool)
    axes.plot(history["iteration"][kept], history["distinct_ancestors"][kept], ".", color=other, markersize=4)
    axes.set(xlabel="iteration", ylabel="particles")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.2 * max(axes.dataLim.y1, 1))
    ink = [colour, other] if colour != other else [INK, INK]
    styles = {"effective sample size": (ink[0], "-"), "distinct ancestors": (ink[1], ".")}
    handles = [axes.plot([], [], style, color=colour, label=name)[0] for name, (colour, style) in styles.items()]
    axes.legend(handles=handles, loc="upper right", ncols=2, frameon=False, fontsize="small", labelcolor=INK)


def _draw_lineages(axes: Axes, parents: Sequence[np.ndarray], start: int) -> None:
    leading, ended = genealogy.lineages(parents)
    width = float(np.clip(60 / len(parents[0]), 0.25, 1.0))
    axes.plot(start + ended.generation, ended.place, color=FAINT, linewidth=width / 2)
    axes.plot(start + leading.generation, leading.place, color=INK, linewidth=width)
    axes.set(xlabel="iteration", ylabel="particles", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.margins(x=0.01, y=0.02)


def _draw_quality(axes: Axes, trace: History, name: str, unit: str, factor: float) -> None:
    axes.plot(trace["seconds"], factor * trace[name], ".-" if len(trace) < FEW else "-", color=BLUE)
    axes.set(xlabel="seconds", ylabel=unit)
    if name == "accuracy":
        _near_best(axes, factor * trace[name].max())
    elif trace[name].min() > 0:
        _log_scale(axes, "{x:g}")


def _near_best(axes: Axes, best: float) -> None:
    """Percentages up to 40 below the best."""
    axes.set_ylim(max(0.0, best - 40), min(100.0, best + 2))


def _draw_reliability(axes: Axes, reliability: Reliability, colour: str) -> None:
    confidence, correct, count = (column[reliability.count > 0] for column in reliability)
    axes.plot([0, 1], [0, 1], color=AXIS, linewidth=1, zorder=1)
    axes.plot(confidence, correct, color=colour, linewidth=1, alpha=0.5)
    axes.scatter(confidence, correct, 4 + 200 * count / count.sum(), color=colour, clip_on=False, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")


def _draw_predictions(axes: Axes, truth: np.ndarray, mean: np.ndarray) -> None:
    some = slice(None, None, -(-len(truth) // 2000))
    ends = [min(truth.min(), mean.min()), max(truth.max(), mean.max())]
    axes.plot(ends, ends, color=AXIS, linewidth=1)
    axes.scatter(truth[some], mean[some], 8, color=BLUE, alpha=0.6, linewidths=0)
    axes.set(xlabel="true value", ylabel="posterior mean")


def _entitle(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)


def _log_scale(axes: Axes, form: str) -> None:
    """A logarithmic y axis with plain numbers."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter("")


def figure_class() -> type[Figure]:
    """Matplotlib's; to be called before a run whose pictures are wanted, since it may be missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a picture needs matplotlib: pip install 'fastsmc[plot]'") from None
    return Figure


def check_format(path: Path) -> None:
    """Refuse a picture in a format that matplotlib does not write; to be called before a run too."""
    figure_class()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise ValueError(f"{path} has the suffix {path.suffix}; it must be one of {', '.join(sorted(known))}")


def figure_of(title: str, rows: int = 2, columns: int = 2) -> tuple[Figure, np.ndarray]:
    """An empty figure and its panels, [rows, columns]."""
    figure = figure_class()(figsize=(5 * columns, 3.2 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(AXIS)
        axes.tick_params(which="both", colors=INK)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(INK)
    figure.suptitle(title, color=INK, fontsize=14)
    return figure, grid
