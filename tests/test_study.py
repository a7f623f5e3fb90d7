"""The end-to-end study: its files, its figures, and every method of its table on a tiny problem."""

import math
import re
from dataclasses import replace
from time import sleep

import numpy as np
import pytest

import fastsmc as fs
from bench import annealing_study
from bench.study import grid, pictures, records, report, summary
from bench.study.baselines import Ensemble, StochasticGradientHMC
from bench.study.grid import Run
from bench.study.methods import Annealed
from bench.study.problems import PROBLEMS
from bench.study.records import COLUMNS, Record
from bench.study.tempered import BlackjaxTempering
from fastsmc import metrics
from fastsmc.data import Dataset

RUN = "digits/smooth-none-hmc/0"


def blobs(rows=60):
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = (rng.normal(size=(rows, 2)) + 4 * np.array([[0, 1], [1, -1], [-1, -1]])[y]).astype(np.float32)
    return Dataset(x, y, x, y, "blobs", 3)


def tiny(**changes):
    problem = PROBLEMS[0].quick()
    preset = replace(problem.preset, start=10, num_steps=2, prior_scale=1.0)
    return replace(problem, **{"net": fs.MLP([2, 4, 3]), "preset": preset, "rows": 60, "budget": 0.3} | changes)


def made(seconds, accuracy, **columns):
    """A record of a curve."""
    given = {"seconds": seconds, "accuracy": accuracy, **columns}
    curve = {name: list(given.get(name, [None] * len(seconds))) for name in COLUMNS}
    return Record({}, curve, [[0.0], [0.0], [1.0]], [], [], {"machine": "m", "date": "2026-01-01"})


def study(out, *options):
    return annealing_study.main(["--quick", "--out", str(out), *options])


METHODS = list(dict.fromkeys(run.method for run in grid.table(quick=True, seeds=1)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.share}")
def test_every_method_of_the_table_learns_a_tiny_problem(method):
    for module in method.needs:
        pytest.importorskip(module)
    if isinstance(method, Annealed):
        method = replace(method, start=method.start and 20)
    problem = tiny(budget=1.0 / method.share)
    run = Run(replace(problem, preset=replace(problem.preset, particles=16, iterations=20)), method, seed=3)
    record = records.follow(run, blobs())
    assert record.settings == run.settings
    assert record.machine["date"]
    assert all(np.isfinite(record.column(name)).all() for name in ("seconds", "data_passes"))
    assert all(np.isfinite(record.looked(name)).all() for name in ("accuracy", "nll", "ece"))
    assert len(record.looked("nll")) >= 2
    assert np.all(np.diff(record.column("seconds")) > 0)
    assert np.all(np.diff(record.column("data_passes")) > 0)
    assert np.all(record.column("seconds")[:-1] < run.budget)
    assert record.last("accuracy") > 0.8
    assert record.last("nll") < 0.8 * math.log(3)
    assert sum(record.reliability[2]) == 60


def test_methods_have_names_of_their_own():
    names = [run.name for run in grid.table(quick=False, seeds=3)]
    assert len(set(names)) == len(names)
    assert {run.method.scheme for run in grid.table(quick=False, seeds=1)} >= {
        *("full", "mini", "data", "smooth", "tempering", "ensemble", "sghmc", "blackjax")
    }


def test_lenet_is_run_only_where_it_is_asked_for():
    table = list(grid.table(quick=False, seeds=1))
    assert not any("lenet" in run.name for run in table if grid.chosen(run, "all", ""))
    assert not any("lenet" in run.name for run in table if grid.chosen(run, "all", "smooth"))
    assert any("smooth" in run.name for run in table if grid.chosen(run, "mnist", "lenet/smooth"))


def test_planned_passes_are_those_that_are_made():
    """But for the search of the step size and the first look at the data."""
    for method in (Annealed("full"), Annealed("smooth", scale="full"), Annealed("mini", scale="full", length=2)):
        run = Run(tiny(budget=60.0), method, 0)
        planned, made = method.data_passes(run.problem), records.follow(run, blobs()).last("data_passes")
        assert planned <= made < planned + 25
    assert Annealed("tempering").data_passes(tiny()) == math.inf


def test_the_clock_does_not_count_evaluation(monkeypatch):
    """Each is longer than the budget, and there are several."""
    accuracy, slept = metrics.accuracy, []

    def slow(*args):
        slept.append(0.21)
        sleep(slept[-1])
        return accuracy(*args)

    monkeypatch.setattr(metrics, "accuracy", slow)
    for method in (Annealed("smooth", scale="none"), Ensemble(batch_size=20)):
        slept.clear()
        record = records.follow(Run(tiny(budget=0.2), method, 0), blobs())
        assert len(slept) >= 3
        assert record.last("seconds") < sum(slept)


def test_the_test_data_are_looked_at_now_and_then_and_at_the_end():
    record = records.follow(Run(tiny(budget=60.0), Annealed("full", length=30), 0), blobs())
    looked, seconds = np.flatnonzero(~np.isnan(record.column("accuracy"))), record.column("seconds")
    assert looked[0] == 0 and looked[-1] == len(seconds) - 1 > len(looked)
    assert np.all(np.diff(seconds[looked[:-1]]) >= 0.6)


def test_a_subset_is_all_that_a_method_sees():
    dataset = blobs()
    dataset = dataset._replace(x_train=np.where(np.arange(60)[:, None] < 20, dataset.x_train, np.float32(np.nan)))
    record = records.follow(Run(tiny(), Annealed("full", subset=20), 0), dataset)
    assert record.last("batch_size") == 20


def test_the_ensemble_is_at_the_mode_of_the_posterior():
    """A posterior without hidden units has one mode: all networks go there, and its gradient vanishes."""
    problem, dataset = tiny(net=fs.MLP([2, 3]), budget=1.0), blobs()
    states = Ensemble(batch_size=60, learning_rate=0.02).sample(problem, dataset, 0)
    state = next(state for state in states if state.data_passes > 2000)
    particles = state.predict.__self__.particles
    gradient = problem.posterior.log_likelihood_and_grad(particles, dataset.x_train, dataset.y_train).grad - particles
    assert np.abs(gradient).max() < 0.02
    assert np.ptp(particles, axis=0).max() < 0.02


def test_sghmc_samples_the_prior_where_data_say_nothing():
    """Inputs of zero leave the weights to their prior, a standard normal.

    A step is linear in (theta, v) there, so that its stationary covariance S = A S A' + Q is known. The chains are
    independent: a false alarm has five standard deviations, one in a million.
    """
    preset = replace(tiny().preset, particles=2000, prior_scale=1.0)
    problem = tiny(net=fs.MLP([2, 3]), preset=preset, budget=1.0)
    dataset = blobs()._replace(x_train=np.zeros((60, 2), np.float32))
    rate, friction = 0.1, 0.2
    states = StochasticGradientHMC(batch_size=60, learning_rate=60 * rate, friction=friction).sample(
        problem, dataset, 0
    )
    weights = next(state for state in states if state.data_passes > 300).predict.__self__.particles[:, :6]

    step = np.array([[1, 1], [-rate, 1 - friction - rate]])
    noise = np.diag([0, 2 * friction * rate])
    variance = np.linalg.solve(np.eye(4) - np.kron(step, step), noise.ravel())[0]
    assert 1 < variance < 1.2
    assert abs(weights.mean()) < 5 * math.sqrt(variance / weights.size)
    assert abs(weights.var() / variance - 1) < 5 * math.sqrt(2 / weights.size)


def test_speed_up_of_curves_with_a_known_answer():
    full = made([10, 20, 30, 40], [0.5, 0.9, 0.9475, 0.95])
    fast = made([1, 2, 3, 4, 5], [0.9, 0.947, 0.94, 0.948, 0.96])
    target, first, stay, ratio = summary.speed_up(full, fast)
    assert (target, first, stay) == (pytest.approx(0.947), 2, 4)
    assert ratio == pytest.approx(30 / 2)
    assert summary.speed_up(full, full)[1:] == (30, 30, 1)
    _, first, stay, ratio = summary.speed_up(full, made([1], [0.9]))
    assert math.isnan(first)
    assert math.isnan(stay)
    assert ratio == 0


def test_medians_count_never_as_last():
    problem = tiny()
    full = {Run(problem, Annealed("full"), s): made([8 * (s + 1)], [0.9]) for s in range(3)}
    smooth = {Run(problem, Annealed("smooth", scale="none"), s): made([2], [a]) for s, a in enumerate((0.9, 0.9, 0.1))}
    mala = {Run(problem, Annealed("smooth", "mala", scale="none"), 1): made([4], [0.9])}
    rows = summary.summarise(full | smooth | mala)
    same = [rows[run] for run in smooth]
    assert [row.speedup for row in same] == [4, 8, 0]
    assert summary.middle(same, "speedup") == 4
    assert summary.middle(same, "seconds_to_target") == 2
    assert math.isnan(summary.middle(same[1:], "seconds_to_target"))
    assert rows[next(iter(mala))].reference.endswith("full-hmc/1")
    assert rows[next(iter(mala))].speedup == 4


def test_the_ensemble_is_read_at_equal_wall_time():
    problem = tiny()
    run, ensemble = Run(problem, Annealed("full"), 0), Run(problem, Ensemble(), 0)
    curve = made([1, 2, 4], [0.1, 0.2, 0.3], nll=[3, 2, 1], ece=[0.3, 0.2, 0.1])
    for seconds, expected in ((3, 2), (4, 1), (9, 1), (0.5, math.nan)):
        row = summary.summarise({run: made([seconds], [0.9]), ensemble: curve})[run]
        assert row.ensemble_nll == pytest.approx(expected, nan_ok=True)


def test_a_report_says_what_is_missing_and_what_collapsed(tmp_path):
    table = [run for run in grid.table(quick=True, seeds=2) if run.problem.name == "digits"]
    figures = {"ess": [1.5, 4], "distinct_ancestors": [1, 4], "batch_size": [100, 100], "temperature": [1, 1]}
    figures |= {name: [0.5, 0.4] for name in ("nll", "ece", "data_passes", "likelihood_scale")}
    run = next(run for run in table if run.name == RUN)
    report.write(table, {run: made([1, 2], [0.5, 0.9], **figures)}, ["b.json is damaged"], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert f"Missing: {len(table) - 1} of {len(table)} runs" in text
    assert "smooth data annealing, hmc, seeds 1\n" in text
    assert "SGHMC, seeds 0, 1\n" in text
    assert "b.json is damaged" in text
    assert "There is no full-batch run" in text
    assert "There is no deep ensemble" in text
    assert "| smooth data annealing, hmc | 1.5 | 1 | 1 of 2 | - | 100 points |" in text
    for name in ("curves", "schedules", "frontier", "calibration"):
        assert (tmp_path / "r" / f"digits-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_says_in_short_who_is_fast_and_who_keeps_its_particles(tmp_path):
    table = {run.name: run for run in grid.table(quick=True, seeds=1)}
    curves = {
        "digits/full-hmc/0": made(
            *([1, 60], [0.5, 0.9]), nll=[2, 0.5], ece=[0.1, 0.1], distinct_ancestors=[0, 4], data_passes=[2, 80]
        ),
        "digits/smooth-none-hmc/0": made(
            *([1, 6], [0.5, 0.9]), nll=[2, 0.4], ece=[0.1, 0.2], distinct_ancestors=[4, 4], data_passes=[2, 12]
        ),
        "digits/ensemble/0": made([1, 2], [0.5, 0.9], nll=[2, 0.6], ece=[0.1, 0.3]),
    }
    report.write(list(table.values()), {table[name]: r for name, r in curves.items()}, [], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    speed = "smooth data annealing, hmc (10.00x: there after 12 data passes, full batch after 80)"
    assert f"with its moves: {speed}.\n" in text
    assert "Lowest NLL: smooth data annealing, hmc (0.4000); lowest ECE: full batch, hmc (0.1000).\n" in text
    assert "No resampling left fewer than a quarter of the particles: smooth data annealing, hmc.\n" in text


def test_done_is_not_done_again_and_damage_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "draw", lambda *arguments: {})  # which takes longer than the runs
    choice = ("--only", RUN)
    assert study(tmp_path, *choice, "--report") == 1
    assert "0 of 1 runs are done" in capsys.readouterr().out
    assert study(tmp_path, *choice) == 0
    (path,) = tmp_path.glob("*.json")
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert "1 of 1 runs are done" in capsys.readouterr().out

    assert study(tmp_path, *choice) == 0
    assert path.stat().st_mtime_ns == stamp

    path.write_bytes(content[: len(content) // 2])
    assert study(tmp_path, *choice, "--report") == 1
    assert "0 of 1 runs are done" in capsys.readouterr().out
    assert study(tmp_path, *choice) == 0
    assert f"{path.name} is not a whole run file" in capsys.readouterr().out
    assert path.read_bytes() != content[: len(content) // 2]
    assert "smooth-none-hmc" in (tmp_path / "annealing_study.csv").read_text()


def test_files_of_other_settings_do_not_count(tmp_path):
    run = Run(tiny(), Annealed("smooth", scale="none"), 0)
    record = records.follow(run, blobs())
    records.write(record, tmp_path / run.file)
    assert records.finished([run], tmp_path) == ({run: record}, [])
    longer = replace(run, problem=tiny(budget=9.0))
    found, (complaint,) = records.finished([longer], tmp_path)
    assert not found
    assert "other settings" in complaint
    for content in (b"[]", b"{}", b'{"format": 99}', b"\xff\xfe", b""):
        (tmp_path / run.file).write_bytes(content)
        with pytest.raises(ValueError, match="is not a"):
            records.read(tmp_path / run.file, run)


def test_a_run_that_fails_leaves_no_file(tmp_path, capsys):
    assert study(tmp_path, "--data", "mnist", "--data-dir", str(tmp_path), "--only", "mnist/full-hmc/0") == 1
    assert "failed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_method_whose_modules_are_absent_is_left_out_with_the_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(BlackjaxTempering, "needs", ("absent_module",))
    assert study(tmp_path, "--only", "digits/blackjax") == 1
    assert "digits/blackjax/0: left out, it needs absent_module" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [([], "--data-dir is missing"), (["--only", "absent"], "'absent' .* names no run")],
)
def test_wrong_options_are_named(tmp_path, capsys, options, sentence):
    with pytest.raises(SystemExit):
        study(tmp_path, *options)
    assert re.search(sentence, capsys.readouterr().err)
