"""The study's pictures, four for each problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.study.grid import Run
from bench.study.problems import Problem
from bench.study.records import Record
from fastsmc.plotting import PALETTE, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Mapping[Run, Record]
MARKERS = {"hmc": "o", "mala": "s", "langevin": "^", "kinetic": "D", "sghmc": "v"}
DASHES = ("-", "--", ":")


def draw(problem: Problem, records: Records, folder: Path) -> dict[str, Path]:
    """Draw all of a problem's runs; the files by their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    styles = _styles(records)
    pictures: dict[str, Callable[[str, Records, dict[str, dict], Path], None]] = {
        "Test accuracy and negative log-likelihood against wall time": _curves,
        "Data in the likelihood and temperature": _schedules,
        "Test error and negative log-likelihood at the end against wall time": _frontier,
        "Calibration at the end, first seed": _calibration,
    }
    paths = {}
    for caption, picture in pictures.items():
        paths[caption] = folder / f"{problem.name}-{picture.__name__.strip('_')}.png"
        picture(problem.title, records, styles, paths[caption])
    return paths


def _styles(records: Records) -> dict[str, dict]:
    """Colour and dashes by method without its move, the same in all pictures."""
    families = list(dict.fromkeys(map(_family, records)))
    return {
        family: {"color": PALETTE[k % len(PALETTE)], "linestyle": DASHES[k // len(PALETTE) % len(DASHES)]}
        for k, family in enumerate(families)
    }


def _family(run: Run) -> str:
    return "-".join(part for part in run.method.name.split("-") if part != run.method.move)


def _legend(panel: Axes) -> None:
    handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    panel.legend(handles.values(), handles, frameon=False, fontsize=7)


def _save(figure: Figure, path: Path, dpi: float | str = "figure") -> None:
    """With a palette of 64 colours: the repository keeps these pictures."""
    from PIL import Image  # comes with matplotlib

    figure.savefig(path, dpi=dpi)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def _curves(title: str, records: Records, styles: dict[str, dict], path: Path) -> None:
    moves = list(dict.fromkeys(run.method.move or "hmc" for run in records))
    figure, panels = figure_of(title, 2, len(moves))
    for run, record in records.items():
        style = styles[_family(run)] | {"label": _family(run), "linewidth": 1, "alpha": 0.8}
        accuracy, nll = panels[:, moves.index(run.method.move or "hmc")]
        accuracy.plot(record.looked("seconds"), record.looked("accuracy"), **style)
        nll.plot(record.looked("seconds"), record.looked("nll"), **style)
    for move, (accuracy, nll) in zip(moves, panels.T, strict=True):
        finals = [r.last("accuracy") for run, r in records.items() if (run.method.move or "hmc") == move]
        good = max(finals) - 0.15  # a method that failed is not to squeeze the others
        accuracy.set(title=f"Test accuracy, {move}", xscale="log", ylim=(max(0.0, good), min(1.0, max(finals) + 0.01)))
        nll.set(title=f"Test NLL, {move}", xscale="log", xlabel="seconds", yscale="log")
        _legend(accuracy)
    _save(figure, path, dpi=90)  # wide


def _schedules(title: str, records: Records, styles: dict[str, dict], path: Path) -> None:
    figure, ((batch, temperature),) = figure_of(title, 1, 2)
    for run, record in records.items():
        if run.seed == min(r.seed for r in records) and not np.isnan(record.column("batch_size")).all():
            style = styles[_family(run)] | {"label": _family(run), "linewidth": 1}
            batch.step(record.column("data_passes"), record.column("batch_size"), where="pre", **style)
            temperature.plot(record.column("data_passes"), record.column("temperature"), **style)
    batch.set(title="Data points in the likelihood", xlabel="data passes", xscale="log", yscale="log")
    temperature.set(title="Temperature", xlabel="data passes", xscale="log", yscale="log")
    temperature.set_ylim(top=1.5)
    _legend(batch)
    _save(figure, path)


def _frontier(title: str, records: Records, styles: dict[str, dict], path: Path) -> None:
    figure, (panels,) = figure_of(title, 1, 2)
    for run, record in records.items():
        family, marker = _family(run), MARKERS.get(run.method.move, "*")
        colour, solid = styles[family]["color"], styles[family]["linestyle"] == DASHES[0]
        look = {"marker": marker, "edgecolor": colour, "facecolor": colour if solid else "none", "alpha": 0.8}
        for panel, value in zip(panels, (1 - record.last("accuracy"), record.last("nll")), strict=True):
            panel.scatter(record.last("seconds"), value, label=family, **look)
    for panel, name in zip(panels, ("Test error", "Test NLL"), strict=True):
        panel.set(title=f"{name} at the end", xlabel="seconds", xscale="log", yscale="log")
        panel.xaxis.set_minor_formatter("")
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=7)
    marks = ", ".join(f"{marker} {move}" for move, marker in zip(MARKERS, "●■▲◆▼", strict=True))
    panels[1].text(0.98, 0.96, marks, transform=panels[1].transAxes, ha="right", fontsize=7)
    _save(figure, path)


def _calibration(title: str, records: Records, styles: dict[str, dict], path: Path) -> None:
    figure, ((panel, counts),) = figure_of(title, 1, 2)
    panel.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1)
    for run, record in records.items():
        if run.seed == min(r.seed for r in records) and run.method.move in ("hmc", "sghmc", ""):
            confidence, correct, count = map(np.asarray, record.reliability)
            some, style = count > 0, styles[_family(run)] | {"label": _family(run), "linewidth": 1}
            panel.plot(confidence[some], correct[some], **style)
            counts.plot(confidence[some], count[some] / count.sum(), **style)
    panel.set(title="Calibration", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    counts.set(title="Share of predictions", xlabel="confidence", xlim=(0, 1), yscale="log")
    _legend(counts)
    _save(figure, path)
