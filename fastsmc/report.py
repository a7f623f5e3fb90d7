"""A run as one HTML file: what was run, how good it is, what to beware of, and pictures that say how to read them.

The file needs nothing else: pictures are inline SVG, and there are no scripts.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastsmc import arrays, metrics, plotting, sources
from fastsmc.files import write_atomically
from fastsmc.plotting import AXIS, BLUE, FAINT, GRID, INK, ORANGE, Picture

if TYPE_CHECKING:
    from fastsmc.result import Result

COLOURS = {INK: "--ink", AXIS: "--axis", FAINT: "--faint", GRID: "--grid", BLUE: "--blue", ORANGE: "--orange"}
"""Properties of the style sheet that stand for the colours of pictures, which are others on a dark page."""
EXAMPLES = 24
QUALITIES = {
    "accuracy": ("test accuracy", lambda value: f"{100 * value:.2f} %"),
    "nll": ("test negative log-likelihood", lambda value: f"{value:.4f}"),
    "ece": ("expected calibration error", lambda value: f"{value:.4f}"),
    "rmse": ("test root mean square error", lambda value: f"{value:.4g}"),
}


class Fact(NamedTuple):
    """A number with its name."""

    name: str
    value: str
    note: str = ""


class Example(NamedTuple):
    """A test row whose prediction deserves a look; ``image`` is a PNG as a data URL."""

    row: int
    true: str
    predicted: str
    score: str
    wrong: bool
    image: str | None


class Examples(NamedTuple):
    """Test rows, the most remarkable first."""

    title: str
    caption: str
    score: str
    """What the examples are ranked by."""
    rows: Sequence[Example]


def write(
    result: Result,
    path: str | Path,
    x: Any = None,
    y: Any = None,
    trace: Mapping[str, np.ndarray] | None = None,
    title: str = "A run of fastsmc",
    about: Mapping[str, Any] | None = None,
    saved: str | Path | None = None,
) -> None:
    """Write the report of a run.

    Parameters
    ----------
    result
        Of a run that may have been interrupted.
    path
        The file.
    x, y
        Test data, as `Result.evaluate` takes them, for all that is said of predictions. Rows [n, height, width] or
        [n, channels, height, width] are shown as images.
    trace
        A `Trace` of the run, for its quality against time.
    title
        Of the page.
    about
        What else is to be said of the run, by name: data, target column, purpose.
    saved
        The file that `Result.save` wrote, to be named where the report says how to load it.
    """
    write_atomically(Path(path), render(result, x, y, trace, title, about, saved).encode())


def render(
    result: Result,
    x: Any = None,
    y: Any = None,
    trace: Mapping[str, np.ndarray] | None = None,
    title: str = "A run of fastsmc",
    about: Mapping[str, Any] | None = None,
    saved: str | Path | None = None,
) -> str:
    """The page that `write` writes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # which torch requires

    environment = Environment(
        autoescape=True, loader=PackageLoader("fastsmc", ""), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent}
    images = None if x is None else sources.whole(x)
    x = None if x is None else images.reshape(len(images), -1)
    y = sources.table(y, "y")
    panels = plotting.pictures(result, x, y, trace)
    return environment.get_template("report.html").render(
        title=title,
        summary=_summary(result),
        result=result,
        facts=_facts(result, x, y),
        settings=_settings(result, about or {}),
        figures=[(panel, _svg(panel, f"picture {number}")) for number, panel in enumerate(panels)],
        classes=metrics.by_class(*result.classify(x, y)) if x is not None and result.classifies else None,
        examples=None if x is None else _examples(result, x, y, images),
        rows=list(zip(*result.history.values(), strict=True)),
        saved=str(saved or "run.safetensors"),
        is_saved=saved is not None,
    )


def _summary(result: Result) -> str:
    """What was run, in a line."""
    network, settings = result.posterior.network, result.settings
    parts = (
        settings.get("sampler", ""),
        f"{type(network).__name__} with {network.num_params:,} weights",
        f"{len(result.log_weights):,} particles",
        f"{result.num_data:,} data points",
        settings.get("started", "")[:16].replace("T", " "),
    )
    return ", ".join(filter(None, parts))


def _facts(result: Result, x: Any, y: Any) -> list[Fact]:
    """The numbers at the head of the page."""
    history, count = result.history, len(result.log_weights)
    quality = {} if x is None else result.evaluate(x, y)
    found = [Fact(name, show(quality[key])) for key, (name, show) in QUALITIES.items() if key in quality]
    if result.log_evidence is not None:
        found.append(Fact("log evidence", f"{result.log_evidence:,.1f}", _evidence_note(result)))
    return [
        *found,
        Fact("effective sample size", f"{result.ess:.1f}", f"of {count:,} particles, at the end"),
        Fact("fewest distinct ancestors", number(history["distinct_ancestors"].min()), "of any iteration"),
        Fact("founders", number(history["distinct_roots"][-1]), "first particles with descendants at the end"),
        Fact("data passes", f"{history['data_passes'][-1]:.1f}", f"over {len(history)} iterations"),
        Fact("time", f"{history['seconds'][-1]:.1f} s"),
    ]


def _evidence_note(result: Result) -> str:
    """How far its evidence is to be trusted."""
    error = result.log_evidence_error
    if math.isnan(error):
        return "of unknown error"
    if result.history["distinct_roots"][-1] == 1:
        return "of unknown error: all particles descend from one"
    return f"± {error:.2g}, from the genealogy"


def _settings(result: Result, about: Mapping[str, Any]) -> dict[str, str]:
    """What was run, by name; what is not known is left out."""
    posterior = result.posterior
    known = {
        "data_points": result.num_data,
        "network": posterior.network,
        "weights_of_a_particle": posterior.network.num_params,
        **{name: getattr(posterior, name) for name in ("prior", "likelihood", "precision")},
        "precision_in_use": result.precision_in_use,
        **{name.removeprefix("num_"): value for name, value in result.settings.items() if name != "num_data"},
    }
    if "seed" in known:
        known["seed"] = str(known["seed"])  # to be copied, without separators
    named = dict(about) | {name.replace("_", " "): value for name, value in known.items()}
    return {name: _words(value) for name, value in named.items() if value is not None}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return number(value) if isinstance(value, int | float) else str(value)


def number(value: Any) -> str:
    """A number as people read it; a dash for one that is not known."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:,.4g}"


def percent(value: float) -> str:
    """A share as people read it; a dash for one that is not known."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _examples(result: Result, x: np.ndarray, y: Any, images: np.ndarray) -> Examples | None:
    """The most uncertain predictions of classes, or the largest errors of a regression."""
    if result.classifies:
        return _uncertain(*result.classify(x, y), images)
    truth, mean = (np.ravel(arrays.on_host(a, "y")).astype(np.float64) for a in (y, result.predict(x)))
    if truth.shape != mean.shape:
        return None
    error = mean - truth
    rows = [
        Example(int(i), number(truth[i]), number(mean[i]), number(error[i]), False, None)
        for i in np.argsort(-np.abs(error))[:EXAMPLES]
    ]
    return Examples("Largest errors", "Test values that the posterior mean misses most.", "error", rows)


def _uncertain(proba: np.ndarray, y: np.ndarray, images: np.ndarray) -> Examples:
    entropy = -np.sum(proba * np.log(np.maximum(proba, np.finfo(np.float64).tiny)), axis=1)
    chosen, guess = np.argsort(-entropy, kind="stable")[:EXAMPLES], proba.argmax(axis=1)
    pictured = len(images) == len(proba) and (images.ndim == 3 or (images.ndim == 4 and images.shape[1] in (1, 3)))
    rows = [
        Example(
            int(i),
            str(y[i]),
            f"{guess[i]} ({100 * proba[i].max():.0f} %)",
            f"{entropy[i]:.3f}",
            bool(guess[i] != y[i]),
            _png(images[i]) if pictured else None,
        )
        for i in chosen
    ]
    caption = (
        "Test rows whose predicted probabilities have the highest entropy; "
        f"{sum(row.wrong for row in rows)} of these {len(rows)} are wrong, of all {100 * np.mean(guess != y):.2f} %."
    )
    return Examples("Most uncertain predictions", caption, "entropy, nats", rows)


def _png(image: np.ndarray) -> str:
    """An image [height, width] or [channels, height, width] as a data URL, its values spread over black to white."""
    from matplotlib.image import imsave

    pixels = image if image.ndim == 2 else image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    low, high = float(pixels.min()), float(pixels.max())
    file = io.BytesIO()
    imsave(file, (pixels - low) / max(high - low, 1e-30), cmap="gray", vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _svg(picture: Picture, name: str) -> Any:
    """A picture as SVG that is part of a page: in its font and its colours, with names that no other picture has."""
    figure, ((axes,),) = plotting.figure_of("", 1, 1)
    picture.draw(axes)
    from markupsafe import Markup
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nobody)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head = rf'<svg viewBox="\1" role="img" aria-label="{picture.title}">'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', head, text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)
