import json
import subprocess
import sys

import numpy as np
import pytest

from fastsmc import cli, demo, ops, progress
from fastsmc.networks import MLP
from fastsmc.result import History

TINY = ["--particles", "4", "--iterations", "8", "--quiet"]
ROW = {"iteration": 0, "ess": 31.25, "batch_size": 1437, "acceptance": 0.8}


def fastsmc(*args):
    return subprocess.run(
        [sys.executable, "-m", "fastsmc", *map(str, args)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def blobs(tmp_path):
    """Three well separated classes, learnt in a few iterations."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    path = tmp_path / "blobs.npz"
    np.savez(path, x=rng.normal(size=(240, 2)) + 4 * np.array([[0, 1], [1, -1], [-1, -1]])[y], y=y)
    return path


@pytest.fixture
def line(tmp_path):
    """A regression with a named target in its first column."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2))
    y = x @ [0.5, -0.25] + 0.1 * rng.normal(size=120)
    path = tmp_path / "line.csv"
    np.savetxt(path, np.c_[y, x], delimiter=",", header="height,a,b", comments="")
    return path


def test_demo_prints_a_table_and_writes_a_picture_and_figures(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    picture, figures = tmp_path / "d.png", tmp_path / "d.json"
    done = fastsmc("demo", *TINY, "--out", picture, "--json", figures)
    assert done.returncode == 0, done.stderr
    for label in ("full batch", "smooth data annealing", "adaptive data annealing", "speed-up"):
        assert label in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    report = json.loads(figures.read_text())
    assert [run["iterations"] for run in report["runs"][:2]] == [8, 8]
    for run in report["runs"]:
        assert 0 <= run["accuracy"] <= 1
        assert run["accuracy"] == run["test_accuracy"][-1]
        assert len(run["test_accuracy"]) == len(run["history"]["seconds"]) == run["iterations"]
        assert run["history"]["batch_size"][-1] == 1437
    assert report["runs"][0]["speedup"] == 1
    assert report["runs"][1]["data_passes"] < report["runs"][0]["data_passes"]


def test_ctrl_c_keeps_what_there_is(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    record = demo.Run.record

    def interrupt(run, state):
        record(run, state)
        if run.scheme == "smooth" and len(run.trace) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo.Run, "record", interrupt)
    assert cli.main(["demo", *TINY, "--out", str(tmp_path / "d.png")]) == 130
    out = capsys.readouterr().out
    for scheme, iterations in (("full batch", 3), ("smooth data annealing", 3), ("adaptive data annealing", 2)):
        assert f"warning: {scheme}: interrupted after {iterations} iterations" in out
    assert (tmp_path / "d.png").exists()


def test_train_a_classifier(blobs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    names = ("m.safetensors", "r.png", "r.json", "r.html", "r.jsonl")
    model, picture, figures, page, log = (tmp_path / name for name in names)
    outputs = ["--out", model, "--plot", picture, "--json", figures, "--report", page, "--log", log]
    args = ["train", blobs, "--hidden", 8, "--particles", 16, "--iterations", 30, "--quiet", *outputs]
    assert cli.main([*map(str, args)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    report = json.loads(figures.read_text())
    assert report["test"]["accuracy"] > 0.9
    assert f"{100 * report['test']['accuracy']:.2f} %" in page.read_text()
    assert str(model) in page.read_text() and "fastsmc train blobs.npz" in page.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [line for line in lines if line["event"] == "iteration"]
    assert [row["ess"] for row in rows] == report["history"]["ess"]
    assert [line["message"] for line in lines if line["event"] == "warning"] == report["warnings"]
    assert len(report["history"]["ess"]) == report["history"]["iteration"][-1] + 1 > 2

    import fastsmc as fs

    dataset = cli.data.load(blobs)
    assert fs.load(model).evaluate(dataset.x_test, dataset.y_test) == pytest.approx(report["test"])


def test_train_at_another_precision(blobs, tmp_path, capsys):
    figures = tmp_path / "r.json"
    options = ["--hidden", "64", "64", "--precision", "medium", "--json", str(figures)]
    assert cli.main(["train", str(blobs), *options, *TINY]) == 0
    features, classes = cli.data.load(blobs).x_train.shape[1], cli.data.load(blobs).classes
    in_use = ops.precision_in_use(MLP([features, 64, 64, classes]), "medium")
    assert json.loads(figures.read_text())["precision"] == in_use
    note = f"note: precision medium was computed as {in_use}\n"
    assert (note in capsys.readouterr().err) == (in_use != "medium")


def test_train_a_regression_without_hidden_layer(line, capsys, tmp_path):
    figures = tmp_path / "r.json"
    options = ["--likelihood", "gaussian", "--noise", "0.1", "--standardise", "--prior-scale", "1"]
    sizes = ["--hidden", "--particles", "32", "--iterations", "30", "--quiet"]
    args = ["train", str(line), "--target", "height", *options, *sizes, "--json", str(figures)]
    assert cli.main(args) == 0
    report = json.loads(figures.read_text())
    assert report["test"]["rmse"] < 0.2
    assert len(report["feature_mean"]) == 2 and len(report["target_scale"]) == 1
    assert "test data, in deviations of the target: rmse 0." in capsys.readouterr().out


def test_train_a_regression_whose_noise_is_learned(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = 150 + 77 * (x @ [0.5, -0.25] + 0.1 * rng.normal(size=400))
    np.savetxt(tmp_path / "prices.csv", np.c_[x, y], delimiter=",")
    model = tmp_path / "m.safetensors"
    options = ["--likelihood", "gaussian", "--standardise", "--hidden", "--particles", "32", "--quiet"]
    assert cli.main(["train", str(tmp_path / "prices.csv"), *options, "--out", str(model)]) == 0
    said = capsys.readouterr().out
    assert 0.1 < float(said.partition("rmse ")[2].split()[0]) < 0.25  # 0.1 of 0.57

    import fastsmc as fs

    saved = fs.load(model)
    mean, scale = (np.array(saved.settings[f"feature_{name}"]) for name in ("mean", "scale"))
    predicted = saved.predict(((x - mean) / scale).astype(np.float32))[:, 0]
    predicted = predicted * saved.settings["target_scale"][0] + saved.settings["target_mean"][0]
    assert np.sqrt(np.mean((predicted - y) ** 2)) < 12

    noise = fs.load(model).posterior.unpack(fs.load(model).particles)["noise"]
    assert 0.1 < float(np.asarray(noise).mean()) < 0.25


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--noise", "0", "--likelihood", "gaussian"], "noise is 0.0; it must be a positive"),
        (["--noise", "0.3"], "--noise is 0.3; it must be left out unless --likelihood is gaussian"),
        (["--start", "9"], "--start is 9; it must be left out unless --scheme is one of data, smooth, mini"),
        (["--likelihood-scale", "full", "--scheme", "full"], "--likelihood-scale is full; it must be left out unless"),
        (["--num-steps", "3", "--move", "mala"], "--num-steps is 3; it must be left out unless --move is one of hmc"),
        (["--target", "y"], "target is 'y'; it must be left out unless the data are a .csv file"),
        (["--plot", "r.foo"], "r.foo has the suffix .foo; it must be one of "),
    ],
)
def test_options_without_effect_and_pictures_that_cannot_be_are_refused(
    blobs, tmp_path, monkeypatch, capsys, options, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastsmc.sampler.Sampler.run", lambda *_, **__: pytest.fail("it was run"))
    assert cli.main(["train", str(blobs), *options]) == 1
    assert sentence in capsys.readouterr().err


def test_classes_without_a_row_are_noted(tmp_path, capsys):
    path = tmp_path / "t.csv"
    np.savetxt(path, np.c_[np.random.default_rng(0).normal(size=(60, 2)), 1 + np.arange(60) % 3], delimiter=",")
    assert cli.main(["train", str(path), *TINY]) == 0
    assert "note: classes are 0 to 3; no row for training has 0\n" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["full", "data", "mini", "tempering"])
@pytest.mark.parametrize("move", ["hmc", "mala", "langevin", "random-walk"])
def test_every_scheme_takes_every_move(blobs, scheme, move):
    assert cli.main(["train", str(blobs), "--scheme", scheme, "--move", move, *TINY]) == 0


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["train", "nowhere"], 1, "data 'nowhere' is not a folder"),
        (["train", "nowhere.npz"], 1, "nowhere.npz"),
        (["demo", "--data", "mnist"], 1, "needs --data-dir"),
        (["demo", "--particles", "0"], 2, "0 is not a positive whole number"),
        (["demo", "--out", "."], 2, ". is a folder, not a file"),
        (["train", "digits", "--seed", "-1"], 2, "-1 is not a whole number from 0 on"),
        (["train", "digits", "--likelihood", "gaussian"], 1, "digits holds labels of images; the likelihood must be"),
        (["demo", "--out", "no/such/folder/d.png"], 2, "the folder of no/such/folder/d.png does not exist"),
        (["train", "digits", "--activation", "step"], 1, "step"),
        (["train", "digits", "--device", "xpu"], 1, "device is 'xpu', but no backend reads arrays on xpu"),
        (["nothing"], 2, "nothing"),
        ([], 2, "command"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(args, code, sentence):
    done = fastsmc(*args)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_doctor_names_every_backend_and_says_why_one_is_missing():
    done = fastsmc("doctor")
    assert done.returncode == 0, done.stderr
    for word in (
        "fastsmc",
        "numpy",
        "torch",
        "reference",
        "cpu",
        "triton",
        "cuda",
        "instruction set",
        "precision    highest, high",
    ):
        assert word in done.stdout


def test_bench_outside_a_checkout_says_where_it_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "fastsmc" / "cli.py"))
    assert cli.main(["bench"]) == 1
    assert "make bench" in capsys.readouterr().err


def test_time_to_accuracy_is_when_it_is_first_reached():
    run = demo.Run("full", History({"seconds": [1.0, 2.0, 3.0, 4.0], "accuracy": [0.5, 0.9, 0.8, 0.95]}))
    assert run.time_to(0.5) == 1
    assert run.time_to(0.85) == 2
    assert np.isnan(run.time_to(0.96))


def test_progress_is_silent_without_a_terminal(capsys):
    with progress.Progress(3) as bar:
        bar.update(ROW)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_the_state_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.Progress(3, description="smooth") as bar:
        bar.update(ROW)
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("smooth", "1/3", "ESS 31.2", "batch 1,437", "acceptance 0.80"):
        assert part in err


@pytest.mark.parametrize(
    "command", [["demo"], ["train", "digits", "--report", "r.html"], ["train", "digits", "--plot=r"]]
)
def test_without_matplotlib_nothing_is_run_whose_pictures_are_wanted(command, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("fastsmc.sampler.Sampler.run", lambda *_, **__: pytest.fail("it was run"))
    assert cli.main(command) == 1
    assert capsys.readouterr() == ("", "fastsmc: a picture needs matplotlib: pip install 'fastsmc[plot]'\n")


def test_train_writes_nothing_on_standard_error_where_that_is_no_terminal(blobs):
    done = fastsmc("train", blobs, *TINY[:-1])
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning: " in done.stdout


def test_train_escapes_the_names_of_files_and_columns(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    path, page = tmp_path / "<script>x&y.csv", tmp_path / "r.html"
    table = np.c_[rng.normal(size=(50, 2)), np.arange(50) % 2]
    np.savetxt(path, table, delimiter=",", header='a,b,"<img src=q onerror=alert(1)>"', comments="")
    options = ["--target", "<img src=q onerror=alert(1)>", "--report", str(page)]
    assert cli.main(["train", str(path), *options, *TINY]) == 0
    text = page.read_text()
    assert "<script" not in text and "<img src=q" not in text
    assert "&lt;script&gt;x&amp;y.csv" in text and "&lt;img src=q onerror=alert(1)&gt;" in text


def test_train_lenet_on_rows_of_images(tmp_path, capsys):
    rng = np.random.default_rng(1)
    y = np.arange(60) % 2
    x = rng.standard_normal((60, 3 * 12 * 12)) + y[:, None]
    np.savez(tmp_path / "images.npz", x=x, y=y)
    model = tmp_path / "m.safetensors"
    args = ["train", str(tmp_path / "images.npz"), "--network", "lenet5", "--out", str(model), *TINY]
    assert cli.main(args) == 0

    import fastsmc as fs

    assert fs.load(model).posterior.network == fs.LeNet5(3, 2, image_size=12)
    assert cli.main(["train", "digits", "--network", "lenet5", *TINY]) == 1
    assert "image_size is 8; it must be a whole number of at least 12" in capsys.readouterr().err
