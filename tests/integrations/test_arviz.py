"""Results for ArviZ: 0.x and, where that is installed, 1.x."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import arviz as az
import matplotlib
import numpy as np
import pandas
import pytest
import torch
import xarray
from conjugate import INPUTS, NOISE, problem
from torch.utils.data import TensorDataset

import fastsmc as fs

matplotlib.use("Agg")

ROWS, PARTICLES = 30, 40
TARGETS = {
    "categorical": lambda rng: rng.integers(0, 3, ROWS),
    "bernoulli": lambda rng: rng.integers(0, 2, (ROWS, 3)),
    "gaussian": lambda rng: rng.standard_normal((ROWS, 3), np.float32),
    "poisson": lambda rng: rng.poisson(2.0, (ROWS, 3)),
}


def data_of(kind):
    rng = np.random.default_rng(1)
    return rng.standard_normal((ROWS, 2), np.float32), TARGETS[kind](rng)


@pytest.fixture(scope="module", params=TARGETS)
def run(request):
    """Particles of unequal weights, of which one is zero."""
    data = data_of(request.param)
    posterior = fs.Posterior(fs.MLP([2, 4, 3], "tanh"), likelihood=request.param)
    result = fs.SMC(posterior, PARTICLES, move=fs.HMC(3)).run(*data, progress=False)
    weights = np.random.default_rng(2).uniform(0.2, 3, PARTICLES)
    weights[7] = 0
    with np.errstate(divide="ignore"):
        return replace(result, log_weights=np.log(weights / weights.sum())), *data


def drawn(tree):
    return np.asarray(tree["sample_stats"]["particle"])[0]


def test_draws_are_systematic(run):
    result, x, y = run
    tree = result.to_arviz(x, y, num_draws=100)
    counts, expected = np.bincount(drawn(tree), minlength=PARTICLES), 100 * result.weights
    assert np.all((counts == np.floor(expected)) | (counts == np.ceil(expected)))
    assert np.all(np.diff(drawn(tree)) >= 0)
    parameters = result.posterior.unpack(result.particles)
    assert set(tree["posterior"].data_vars) == set(parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, values in parameters.items():
        assert np.array_equal(tree["posterior"][name], values[drawn(tree)][None])


def test_resampling_is_a_function_of_the_seed(run):
    result, *_ = run
    first, again, other = (drawn(result.to_arviz(seed=seed)) for seed in (0, 0, 1))
    assert len(first) == PARTICLES
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_log_likelihood_is_the_engines(run):
    """Of every point under every draw; an engine's sum over one point is rounded to float32 within, ours without."""
    result, x, y = run
    tree = result.to_arviz(x, y)
    found = np.asarray(tree["log_likelihood"]["y"])[0]
    particles = result.particles[drawn(tree)]
    truth = [result.posterior.log_likelihood(particles, x[i : i + 1], y[i : i + 1]) for i in range(ROWS)]
    assert found.shape == (PARTICLES, ROWS)
    np.testing.assert_allclose(found, np.transpose(truth), rtol=1e-5, atol=1e-6)
    lp = result.posterior.log_prior(particles) + result.posterior.log_likelihood(particles, x, y)
    np.testing.assert_allclose(tree["sample_stats"]["lp"][0], lp, rtol=1e-5)


def test_weighted_particles_are_kept(run):
    result, *_ = run
    group = result.to_arviz()["weighted_posterior"]
    dataset = getattr(group, "dataset", group)
    mean = dataset.weighted(dataset["weight"]).mean("particle").isel(chain=0)
    for name, values in result.posterior.unpack(result.particles).items():
        np.testing.assert_allclose(mean[name], np.tensordot(result.weights, values, 1), rtol=1e-6, atol=1e-12)


def test_history_data_and_attributes(run):
    result, x, y = run
    tree = result.to_arviz(x, y)
    for name, column in result.history.items():
        assert np.array_equal(np.ravel(tree["smc_history"][name]), column, equal_nan=True), name
    assert np.array_equal(tree["observed_data"]["y"], y)
    assert np.array_equal(tree["constant_data"]["x"], x)
    assert tree.attrs["log_evidence"] == result.log_evidence
    assert tree.attrs["inference_library_version"] == fs.__version__
    assert tree.attrs["warnings"].splitlines() == result.warnings
    assert json.loads(tree.attrs["settings"])["seed"] == 0


def test_without_data_there_is_no_log_likelihood(run):
    result, *_ = run
    groups = result.to_arviz(var_names=["2.bias"])
    assert not {"log_likelihood", "observed_data", "constant_data"} & set(groups)
    assert set(groups["posterior"].data_vars) == set(groups["weighted_posterior"].data_vars) == {"2.bias"}


@pytest.mark.parametrize("source", ["pandas", "TensorDataset"])
def test_data_come_from_every_source(run, source):
    result, x, y = run
    expected, y_given = result.to_arviz(x, y), y
    if source == "pandas":
        x, y_given = (pandas.DataFrame(values).convert_dtypes() for values in (x, y))
        y_given = y_given if y.ndim == 2 else y_given[0]
    else:
        x = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    tree = result.to_arviz(x, y_given)
    for group in ("log_likelihood", "observed_data", "constant_data"):
        for name in expected[group].data_vars:
            np.testing.assert_array_equal(tree[group][name], expected[group][name])


def test_a_noise_that_is_sampled_is_a_parameter():
    x, y = data_of("gaussian")
    posterior = fs.Posterior(fs.MLP([2, 3]), likelihood=fs.Gaussian(fs.HalfNormal(1.0)))
    result = fs.SMC(posterior, 8, fs.FullBatch(), fs.HMC(3), num_iterations=2).run(x, y, progress=False)
    tree = result.to_arviz(x, y)
    particles = result.particles[drawn(tree)]
    assert np.array_equal(tree["posterior"]["noise"][0], posterior.unpack(particles)["noise"])
    exact = np.exp(particles[:, -1], dtype=np.float64)
    np.testing.assert_allclose(tree["posterior"]["noise"][0], exact, rtol=np.finfo(np.float32).eps)
    lp = posterior.log_prior(particles) + posterior.log_likelihood(particles, x, y)
    np.testing.assert_allclose(tree["sample_stats"]["lp"][0], lp, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_runs_are_chains():
    x, y = data_of("gaussian")
    smc = fs.SMC(fs.Posterior(fs.MLP([2, 3]), likelihood="gaussian"), 30, move=fs.HMC(3))
    runs = fs.run_many(smc, x, y, seeds=(3, 4, 5), progress=False)
    tree = runs.to_arviz(x, y)
    assert tree["posterior"]["0.weight"].shape == (3, 30, 3, 2)
    numbers = np.asarray(tree["sample_stats"]["particle"])
    for chain, result in enumerate(runs.results):
        particles = result.particles[numbers[chain]]
        assert np.array_equal(tree["posterior"]["0.bias"][chain], particles[:, 6:])
        lp = result.posterior.log_prior(particles) + result.posterior.log_likelihood(particles, x, y)
        np.testing.assert_allclose(tree["sample_stats"]["lp"][chain], lp, rtol=1e-5)
        ess = np.asarray(tree["smc_history"]["ess"][chain])
        assert np.array_equal(ess[: len(result.history)], result.history.ess)
        assert np.isnan(ess[len(result.history) :]).all()
    assert tree.attrs["log_evidence"] == runs.log_evidence
    summary = az.summary(tree, round_to="none")
    assert np.isfinite(np.asarray(summary["r_hat"], float)).all()


@pytest.mark.filterwarnings("ignore")
def test_arviz_works_on_it(run):
    result, x, y = run
    tree = result.to_arviz(x, y)
    summary = az.summary(tree, var_names=["2.bias"], round_to="none")
    bias = np.asarray(tree["posterior"]["2.bias"])[0]
    assert list(summary.index) == ["2.bias[0]", "2.bias[1]", "2.bias[2]"]
    np.testing.assert_allclose(np.asarray(summary["mean"], float), bias.mean(axis=0), rtol=1e-5)
    az.plot_trace(tree, var_names=["2.bias"])
    matplotlib.pyplot.close("all")


def test_netcdf_keeps_it(run, tmp_path):
    result, *_ = run
    tree = result.to_arviz()
    tree.to_netcdf(tmp_path / "run.nc")
    again = az.from_netcdf(tmp_path / "run.nc")
    assert again.attrs["log_evidence"] == result.log_evidence
    assert np.array_equal(again["posterior"]["0.weight"], tree["posterior"]["0.weight"])


@pytest.mark.statistics
@pytest.mark.filterwarnings("ignore")
def test_loo_is_that_of_the_closed_form():
    """Of linear regression, against refits without each point; within 8 standard errors of PSIS's estimate.

    Of n draws the estimate of a point's log density is off by about sqrt(variance of its likelihood / mean^2 / n) or
    less; errors of points are no more than fully correlated. A false alarm is far rarer than 1e-6.
    """
    posterior, x, y = problem(40)
    result = fs.SMC(posterior, 4000, move=fs.HMC(5)).run(x, y, progress=False)
    tree = result.to_arviz(x, y)
    design = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    truth = 0.0
    for i in range(len(x)):
        rest, values = np.delete(design, i, 0), np.delete(y.astype(np.float64), i)
        covariance = np.linalg.inv(np.eye(INPUTS + 1) + rest.T @ rest / NOISE**2)
        mean, variance = covariance @ rest.T @ values / NOISE**2, NOISE**2 + design[i] @ covariance @ design[i]
        truth -= 0.5 * ((y[i] - design[i] @ mean) ** 2 / variance + np.log(2 * np.pi * variance))
    likelihood = np.exp(np.asarray(tree["log_likelihood"]["y"])[0])
    error = np.sum(likelihood.std(axis=0) / likelihood.mean(axis=0)) / np.sqrt(len(likelihood))
    loo = az.loo(tree)
    assert abs(float(getattr(loo, "elpd_loo", getattr(loo, "elpd", None))) - truth) < 8 * error


@pytest.mark.parametrize("version", ["0.23.4", "1.3.0"])
def test_the_container_is_that_of_the_installed_arviz(run, monkeypatch, version):
    pretended = SimpleNamespace(__version__=version, InferenceData=lambda attrs, **groups: groups)
    monkeypatch.setitem(sys.modules, "arviz", pretended)
    tree = run[0].to_arviz()
    assert set(tree) == {"posterior", "sample_stats", "weighted_posterior", "smc_history"}
    assert isinstance(tree, dict if version.startswith("0") else xarray.DataTree)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, y: {"x": x}, "y is None; x and y must be given together"),
        (lambda x, y: {"y": y}, "x is None; x and y must be given together"),
        (lambda x, y: {"x": x, "y": y[:-1]}, "x has 30"),
        (lambda x, y: {"x": x[:, :1], "y": y}, "x has"),
        (lambda x, y: {"x": x, "y": y - 1}, r"y\["),
        (lambda x, y: {"var_names": ["0.weight", "4.bias"]}, "var_names holds '4.bias'; it must name parameters"),
        (lambda x, y: {"num_draws": 0}, "num_samples"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    x, y = data_of("categorical")
    posterior = fs.Posterior(fs.MLP([2, 4, 3]))
    result = fs.SMC(posterior, 4, fs.FullBatch(), num_iterations=1).run(x, y, progress=False)
    with pytest.raises(ValueError, match=message):
        result.to_arviz(**arguments(x, y))


def test_a_missing_library_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastsmc\[arviz\]'"):
        run[0].to_arviz()
