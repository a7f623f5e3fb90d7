import sys

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import metrics, plotting

pytest.importorskip("matplotlib")
SAMPLER = ["Data points in the likelihood", "Particles that count", "Genealogy of the particles"]
MOVES = ["Step size", "Acceptance"]


def data_of(likelihood):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 3)).astype(np.float32)
    z = x @ rng.normal(size=(3, 2))
    targets = {"categorical": z.argmax(axis=1), "bernoulli": (z > 0).astype(int), "gaussian": z}
    return x, targets[likelihood]


def run(likelihood="categorical", kind=fs.SMC, callback=None, **options):
    posterior = fs.Posterior(fs.MLP([3, 2]), likelihood=likelihood)
    x, y = data_of(likelihood)
    if kind is fs.SMC:
        options |= {"annealing": fs.AdaptiveDataAnnealing(start=20, settle=5)}
    return kind(posterior, 8, seed=1, **options).run(x[:60], y[:60], progress=False, callback=callback), x[60:], y[60:]


def titles(result, *data, **options):
    return [picture.title for picture in plotting.pictures(result, *data, **options)]


def drawn(result, title, *data, **options):
    """The axes of one picture."""
    (picture,) = (p for p in plotting.pictures(result, *data, **options) if p.title == title)
    _, ((axes,),) = plotting.figure_of("", 1, 1)
    picture.draw(axes)
    return axes


@pytest.mark.parametrize(
    ("likelihood", "quality", "predictions"),
    [
        ("categorical", "Test accuracy", "Calibration"),
        ("bernoulli", "Test accuracy", "Calibration"),
        ("gaussian", "Test error, root mean square", "Prediction against truth"),
    ],
)
def test_there_is_a_picture_of_all_that_is_known(likelihood, quality, predictions):
    x, y = data_of(likelihood)
    trace = fs.Trace(x[60:], y[60:])
    result, x, y = run(likelihood, callback=trace)
    assert titles(result) == SAMPLER + MOVES
    assert titles(result, x, y) == [*SAMPLER, predictions, *MOVES]
    every = [*SAMPLER, quality, "Test negative log-likelihood", predictions, *MOVES]
    assert titles(result, x, y, trace) == every
    figure = result.plot(None, x, y, trace)
    assert [axes.get_title(loc="left") for axes in figure.axes] == every
    assert [panel.caption[-1] for panel in plotting.pictures(result, x, y, trace)] == ["."] * len(every)


def test_there_is_no_picture_of_what_is_not_known():
    persistent, *_ = run(kind=fs.PersistentSMC)
    assert titles(persistent) == ["Temperature of the likelihood", SAMPLER[1], *MOVES]
    assert titles(run(move=fs.SGHMC(batch_size=4))[0]) == [*SAMPLER, "Step size"]


def test_lines_are_those_of_the_history():
    x, y = data_of("categorical")
    trace = fs.Trace(x[60:], y[60:])
    result, x, y = run(callback=trace)
    history = result.history
    np.testing.assert_array_equal(drawn(result, SAMPLER[0]).lines[0].get_ydata(), history.batch_size)
    ess, ancestors = drawn(result, SAMPLER[1]).lines[:2]
    np.testing.assert_array_equal(ess.get_xydata(), np.c_[history.iteration, history.ess])
    kept = history.resampled
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(ancestors.get_xydata(), np.c_[history.iteration, history.distinct_ancestors][kept])
    accuracy = drawn(result, "Test accuracy", trace=trace).lines[0]
    np.testing.assert_array_equal(accuracy.get_xydata(), np.c_[trace.seconds, 100 * trace.accuracy])
    bins = metrics.reliability(result.predict_proba(x), y)
    points = drawn(result, "Calibration", x, y).collections[0].get_offsets()
    np.testing.assert_allclose(points, np.c_[bins.confidence, bins.accuracy][bins.count > 0])


def test_the_genealogy_starts_before_the_first_iteration_and_ends_with_the_last():
    result, *_ = run()
    axes = drawn(result, SAMPLER[2])
    x = np.concatenate([line.get_xdata() for line in axes.lines])
    assert (np.nanmin(x), np.nanmax(x)) == (-1, result.history.iteration[-1])


def test_many_predictions_are_drawn_in_part():
    rng = np.random.default_rng(0)
    _, ((axes,),) = plotting.figure_of("", 1, 1)
    plotting._draw_predictions(axes, *rng.normal(size=(2, 9000)))
    assert 1000 < len(axes.collections[0].get_offsets()) <= 2000


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_is_the_format(tmp_path, suffix, magic):
    result, *_ = run(num_iterations=2)
    path = tmp_path / f"run.{suffix}"
    result.plot(path)
    assert path.read_bytes().startswith(magic)


def test_x_and_y_come_together():
    result, x, y = run(num_iterations=2)
    with pytest.raises(ValueError, match="y is None; x and y must be given together"):
        result.plot(None, x)
    with pytest.raises(ValueError, match="x is None; x and y must be given together"):
        result.plot(None, y=y)


def test_without_matplotlib_one_sentence_says_how_to_get_it(monkeypatch):
    result, *_ = run(num_iterations=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"a picture needs matplotlib: pip install 'fastsmc\[plot\]'"):
        result.plot()
