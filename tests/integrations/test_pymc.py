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
    model, (log_evidence, mean, covariance) = regression
    with model:
        trace = pm.sample_smc(1000, kernel=kernel, chains=4, cores=1, random_seed=1, progressbar=False)
    evidence = [float(np.asarray(chain).ravel()[-1]) for chain in trace.sample_stats.log_marginal_likelihood.values]
    assert abs(np.mean(evidence) - log_evidence) < 0.2
    found = np.concatenate([trace.posterior.slope.values, trace.posterior.level.values[..., None]], axis=-1)
    error = (found.reshape(-1, 3) - mean) / np.sqrt(np.diag(covariance))
    assert np.all(np.abs(error.mean(0)) < 0.15)
    assert np.all(np.abs(error.var(0) - 1) < 0.2)


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
    def simulator(rng, a, size=None):
        return rng.normal(a, 1, size=size)

    with pm.Model():
        a = pm.Normal("a", 0, 1)
        pm.Simulator("s", simulator, a, observed=np.zeros(5), epsilon=1.0)
        kernel = ours.MH(draws=10)
        kernel._initialize_kernel()
    points = kernel.tempered_posterior
    assert kernel.likelihood_logp_func(points).shape == (10,)


def test_kernels_go_to_workers_and_back(regression):
    model, _ = regression
    with model:
        kernel = ours.IMH(draws=20)
    again = pickle.loads(pickle.dumps(kernel))
    again.set_rng(np.random.default_rng(0))
    kernel._initialize_kernel()
    points = kernel.tempered_posterior
    np.testing.assert_allclose(again.likelihood_logp_func(points), kernel.likelihood_logp_func(points))
