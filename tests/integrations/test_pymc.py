"""PyMC's SMC on our kernels."""

import pickle

import numpy as np
import pytest
from conjugate import closed_form, problem

from fastsmc.annealing import Target

pm = pytest.importorskip("pymc")

from fastsmc.integrations import pymc as ours  # noqa: E402


@pytest.fixture
def regression():
    posterior, x, y = problem(60)
    with pm.Model() as model:
        slope, level = pm.Normal("slope", 0, 1, shape=2), pm.Normal("level", 0, 1)
        pm.Normal("y", x @ slope + level, 1, observed=y)
    return model, closed_form(posterior, x, y, 0, Target(0, 60))


@pytest.mark.parametrize("kernel", [ours.IMH, ours.MH])
def test_evidence_and_posterior(regression, kernel):
    """By Student's t over eight chains, of log evidence, means and variances: false alarm 1e-3, the seed is fixed."""
    model, (log_evidence, mean, covariance) = regression
    with model:
        trace = pm.sample_smc(1000, kernel=kernel, chains=8, cores=1, random_seed=1, progressbar=False)
    evidence = [float(np.asarray(chain).ravel()[-1]) for chain in trace.sample_stats.log_marginal_likelihood.values]
    weights = np.concatenate([trace.posterior.slope.values, trace.posterior.level.values[..., None]], axis=-1)
    error = (weights - mean) / np.sqrt(np.diag(covariance))
    found = np.column_stack([np.array(evidence) - log_evidence, error.mean(1), (error**2).mean(1) - 1])
    t = found.mean(0) / (found.std(0, ddof=1) / np.sqrt(8))
    assert np.all(np.abs(t) < 7.9), t


def test_densities_of_all_points_are_those_of_each(regression):
    model, _ = regression
    with model:
        kernel = ours.IMH(draws=20)
    kernel._initialize_kernel()
    points = kernel.tempered_posterior
    for density in (kernel.prior_logp_func, kernel.likelihood_logp_func):
        assert density.reason == ""
        np.testing.assert_allclose(density(points), [density(point) for point in points])


def test_what_cannot_be_vectorised_is_evaluated_one_by_one():
    with pm.Model():
        number = pm.Poisson("number", 3)
        pm.Normal("y", number, 1, observed=[2.0, 3.5])
        kernel = ours.MH(draws=10)
        kernel._initialize_kernel()
    points, density = kernel.tempered_posterior, kernel.likelihood_logp_func
    assert density.reason.startswith("discrete variables")
    np.testing.assert_array_equal(density(points), [density(point) for point in points])


def test_kernels_go_to_workers_and_back(regression):
    model, _ = regression
    with model:
        kernel = ours.IMH(draws=20)
    again = pickle.loads(pickle.dumps(kernel))
    again.set_rng(np.random.default_rng(0))
    kernel._initialize_kernel()
    points = kernel.tempered_posterior
    np.testing.assert_allclose(again.likelihood_logp_func(points), kernel.likelihood_logp_func(points))
