import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import metrics, plotting, report
from fastsmc.result import History

pytest.importorskip("matplotlib")
HOSTILE = "<script>alert('x')</script>&\"'"
VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """A page that was read: well-formed or refused."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.references = [], Counter(), [], [], set()
        self.text, self.headings = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        self.look_at(attributes)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1
        self.look_at(attributes)

    def look_at(self, attributes):
        for name, value in attributes:
            assert not name.startswith("on"), f"{name}={value} would run"
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            self.references |= set(re.findall(r"url\(#([^)]*)\)", value or ""))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def checked(text):
    """The page, which asks nothing of the network and runs nothing."""
    page = Page(text)
    assert page.tags["script"] == page.tags["iframe"] == page.tags["link"] == 0
    local = [link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert local == ["https://arxiv.org/abs/2601.21983"]
    assert "@import" not in text and "url(http" not in text
    assert max(Counter(page.ids).values(), default=0) <= 1
    wanted = page.references | {link[1:] for link in page.links if link.startswith("#")}
    assert wanted and wanted <= set(page.ids)
    return page


def data_of(likelihood):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 16)).astype(np.float32)
    z = x @ rng.normal(size=(16, 3)) / 4
    return x, {"categorical": z.argmax(axis=1), "bernoulli": (z > 0).astype(int), "gaussian": z}[likelihood]


def run(likelihood, **options):
    x, y = data_of(likelihood)
    trace = fs.Trace(x[60:], y[60:])
    smc = fs.SMC(fs.Posterior(fs.MLP([16, 3]), likelihood=likelihood), 8, fs.DataAnnealing(15), fs.HMC(3), 4, seed=1)
    return smc.run(x[:60], y[:60], progress=False, callback=trace, **options), x[60:], y[60:], trace


@pytest.fixture(scope="module")
def classified():
    return run("categorical")


@pytest.fixture
def one_picture(monkeypatch):
    """Reports of one picture, for tests of all else, since pictures take their time."""
    every = plotting.pictures
    monkeypatch.setattr(plotting, "pictures", lambda *about: every(*about)[:1])


def test_a_report_is_complete(classified, tmp_path):
    result, x, y, trace = classified
    about = {"data": "made up", "purpose": None}
    result.report(tmp_path / "r.html", x, y, trace=trace, title="A test", about=about, saved="run.safetensors")
    text = (tmp_path / "r.html").read_text()
    page = checked(text)
    assert page.headings[0] == "A test"
    sections = ["Pictures", "Most uncertain predictions", "Classes", "What was run", "History"]
    assert [h for h in page.headings if h in sections] == sections
    assert page.tags["svg"] == page.tags["figcaption"] == 8
    for name, shown in (("accuracy", "{:.2%}"), ("nll", "{:.4f}"), ("ece", "{:.4f}")):
        assert shown.format(result.evaluate(x, y)[name]).replace("%", " %") in page.words
    for said in (
        f"{result.log_evidence:,.1f}",
        "made up",
        "MLP(widths=(16, 3), activation='relu')",
        "Normal(scale=1.0)",
        "DataAnnealing(start=15, ",
        result.settings["move"],
        result.settings["machine"],
        result.settings["started"],
        result.settings["versions"]["numpy"],
        "seed 1",
        "precision in use highest",
        "The particles are in run.safetensors.",
        "fs.load('run.safetensors')",
        "4 iterations, a row each",
        *result.warnings,
    ):
        assert said in page.words
    assert result.warnings and "purpose" not in page.words
    assert text.index("What to beware of") < text.index("test accuracy")
    table = re.findall(r"<table>.*?</table>", text, re.S)[-1]
    assert table.count("<tr>") == 1 + len(result.history)
    assert table.count("<td>") == len(result.history) * len(list(result.history))


def test_the_colours_of_pictures_are_the_pages(classified):
    result, x, y, _ = classified
    dying = tuple(np.int32([[0, 0, 2, 2, 4, 4, 6, 6], [0] * 8]))
    text = report.render(replace(result, genealogy=dying), x, y)
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    used = set(re.findall(r"var\((--\w+)\)", pictures))
    assert used == set(report.COLOURS.values())
    assert not re.search(r"#[0-9a-fA-F]{6}\b", pictures)
    light, dark = re.findall(r":root \{(.*?)\}", text, re.S)
    for name in used:
        assert f"{name}:" in light and f"{name}:" in dark


def test_examples_are_the_predictions_of_highest_entropy(classified):
    result, x, y, _ = classified
    proba = result.predict_proba(x)
    entropy = -(proba * np.log(proba)).sum(axis=1)
    found = report._examples(result, x, y, x)
    assert [e.row for e in found.rows] == list(np.argsort(-entropy)[: report.EXAMPLES])
    assert [e.wrong for e in found.rows] == [proba[e.row].argmax() != y[e.row] for e in found.rows]
    assert {e.image for e in found.rows} == {None}


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4)])
def test_images_are_shown(one_picture, classified, shape):
    from matplotlib.image import imread

    result, x, y, _ = classified
    page = checked(report.render(result, x.reshape(-1, *shape), y))
    assert page.tags["img"] == report.EXAMPLES
    rows = report._examples(result, x, y, x.reshape(-1, *shape)).rows
    first = imread(io.BytesIO(base64.b64decode(rows[0].image.partition(",")[2])))[..., 0]
    image = x[rows[0].row].reshape(4, 4)
    np.testing.assert_allclose(first, (image - image.min()) / np.ptp(image), atol=2 / 255)


def test_a_regression_has_its_own_numbers_and_examples():
    result, x, y, trace = run("gaussian")
    page = checked(report.render(result, x, y, trace))
    assert "Largest errors" in page.headings and "Classes" not in page.headings
    assert "Prediction against truth" in page.headings and "Test error, root mean square" in page.headings
    assert f"{result.evaluate(x, y)['rmse']:.4g}" in page.words
    worst = np.abs(result.predict(x) - y).max()
    assert report.number(worst) in page.words.replace("-", "")


def test_frames_of_a_regression_are_its_data():
    pandas = pytest.importorskip("pandas")
    result, x, y, _ = run("gaussian")
    frames = (pandas.DataFrame(values).convert_dtypes() for values in (x, y))
    assert report.render(result, *frames) == report.render(result, x, y)


def test_bernoulli_outputs_count_as_two_classes(one_picture):
    result, x, y, trace = run("bernoulli")
    page = checked(report.render(result, x, y, trace))
    assert f"{100 * result.evaluate(x, y)['accuracy']:.2f} %" in page.words
    assert "Classes" in page.headings


def test_without_test_data_there_is_what_the_run_says_itself(classified, tmp_path):
    result = classified[0]
    page = checked(report.render(result))
    assert page.tags["svg"] == 5
    assert "accuracy" not in page.words and "Classes" not in page.headings
    assert "Once result.save('run.safetensors') has kept the particles:" in page.words
    with pytest.raises(ValueError, match="y is None; x and y must be given together"):
        report.render(result, classified[1])
    result.save(tmp_path / "r.safetensors")
    loaded = checked(report.render(fs.load(tmp_path / "r.safetensors")))
    assert Counter(loaded.words.split()) == Counter(page.words.split())


def test_results_of_which_less_is_known_have_reports(one_picture, classified):
    result, x, y, _ = classified
    pool = fs.PersistentSMC(result.posterior, 8, fs.HMC(3)).run(x, y, progress=False)
    assert "of unknown error" in checked(report.render(pool)).words
    (state, *_) = fs.SMC(result.posterior, 8, fs.FullBatch(), num_iterations=2).iterate(x, y)
    page = checked(report.render(state))
    assert "machine" not in page.words and "1 iterations" in page.words
    assert "NaN" not in page.words and "nan" not in re.findall(r"\w+", page.words)


def test_an_interrupted_run_has_a_report_that_says_so(one_picture):
    x, y = data_of("categorical")

    def interrupt(state):
        if len(state.history) == 2:
            raise KeyboardInterrupt

    smc = fs.SMC(fs.Posterior(fs.MLP([16, 3])), 8, fs.FullBatch(), fs.HMC(3), 4, seed=1)
    page = checked(report.render(smc.run(x, y, progress=False, callback=interrupt), x, y))
    assert "Interrupted: what to beware of" in page.words
    assert "the run was interrupted after 2 of 4 iterations" in page.words


def test_what_users_write_is_shown_and_not_run(one_picture, classified):
    result, x, y, trace = classified
    hostile = replace(
        result,
        warnings=[HOSTILE],
        settings={**result.settings, HOSTILE: HOSTILE, "started": HOSTILE},
        history=History({**result.history, HOSTILE: np.zeros(len(result.history))}),
    )
    options = {"title": HOSTILE, "about": {HOSTILE: {HOSTILE: HOSTILE}}, "saved": HOSTILE}
    text = report.render(hostile, x, y, trace, **options)
    page = checked(text)
    assert "<script" not in text and "alert('x')" not in text.replace("&#39;", "\\'")
    assert page.headings[0] == HOSTILE
    assert page.words.count("alert") >= 8


def test_classes_have_precision_recall_and_their_most_frequent_mistake():
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    guess = np.array([0, 0, 1, 1, 1, 0, 1])
    first, second, third, fourth = metrics.by_class(np.eye(4)[guess], y)
    assert first == (0, 2 / 3, 0.5, 4, 1, 2)
    assert second == (1, 0.25, 0.5, 2, 0, 1)
    assert np.isnan(third.precision) and third[2:] == (0.0, 1, 1, 1)
    assert np.isnan(fourth.recall) and fourth[3:] == (0, None, 0)


def test_classes_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    proba, y = rng.dirichlet(np.ones(5), 300), rng.integers(0, 5, 300)
    precision, recall, _, count = sklearn.precision_recall_fscore_support(y, proba.argmax(axis=1))
    ours = metrics.by_class(proba, y)
    np.testing.assert_allclose([q.precision for q in ours], precision)
    np.testing.assert_allclose([q.recall for q in ours], recall)
    assert [q.count for q in ours] == list(count)
