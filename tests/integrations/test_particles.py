"""particles on our resampling, models and moves."""

import numpy as np
import pytest
from conjugate import closed_form, problem

import fastsmc as fs
from fastsmc import ops
from fastsmc.annealing import Target

particles = pytest.importorskip("particles")

from particles import distributions, resampling, smc_samplers, state_space_models  # noqa: E402

from fastsmc.integrations.particles import HMC, BayesianNetwork  # noqa: E402


@pytest.mark.parametrize("scheme", ops.SCHEMES)
def test_particles_resamples_by_our_schemes(scheme):
    weights = np.random.default_rng(0).random(50)
    weights /= weights.sum()
    np.random.seed(3)  # noqa: NPY002
    found = resampling.resampling(f"fastsmc_{scheme}", weights, 30)
    np.random.seed(3)  # noqa: NPY002
    u = np.random.rand(30) if ops.SCHEMES[scheme] else np.random.rand()  # noqa: NPY002
    assert np.array_equal(found, fs.resample(weights, u, scheme, log=False, num_samples=30))


def test_particles_filters_on_our_resampling():
    """Evidence of a random walk of unit steps seen with unit noise, by its normal density."""

    class Walk(state_space_models.StateSpaceModel):
        def PX0(self):  # noqa: N802
            return distributions.Normal()

        def PX(self, t, xp):  # noqa: N802
            return distributions.Normal(loc=xp)

        def PY(self, t, xp, x):  # noqa: N802
            return distributions.Normal(loc=x)

    times = np.arange(1, 31)
    covariance = np.minimum(times[:, None], times) + np.eye(30)
    y = np.linalg.cholesky(covariance) @ np.random.default_rng(1).standard_normal(30)
    exact = -0.5 * (30 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y))
    np.random.seed(0)  # noqa: NPY002
    model = state_space_models.Bootstrap(ssm=Walk(), data=y)
    run = particles.SMC(fk=model, N=20_000, resampling="fastsmc_systematic")
    run.run()
    assert abs(run.logLt - exact) < 0.3  # six times its deviation from run to run


def regression(num_data=60):
    """Linear regression as a model of particles', and its posterior in closed form."""
    posterior, x, y = problem(num_data)
    model = BayesianNetwork(posterior.network, x, y, posterior.prior, posterior.likelihood)
    return model, closed_form(posterior, x, y, 0, Target(0, num_data))


def test_densities_of_a_network_are_those_of_its_posterior():
    model, _ = regression()
    np.random.seed(0)  # noqa: NPY002
    theta = model.prior.rvs(size=7)
    weights = theta["weights"].astype(np.float32)
    x, y, posterior = model.x, model.data, model.posterior
    for t in (0, 9, 59):
        expected = posterior.log_likelihood(weights, x[: t + 1], y[: t + 1])
        np.testing.assert_allclose(model.loglik(theta, t), expected)
        np.testing.assert_allclose(model.logpost(theta, t), expected + posterior.log_prior(weights), rtol=1e-6)
        np.testing.assert_allclose(
            model.logpyt(theta, t), posterior.log_likelihood(weights, x[t : t + 1], y[t : t + 1])
        )
    np.testing.assert_array_equal(model.loglik(theta, -1), np.zeros(7))
    np.testing.assert_allclose(model.loglik(theta), model.loglik(theta, 59))


PRIORS = {
    "Normal": fs.Normal(0.7),
    "Laplace": fs.Laplace(0.7),
    "StudentT": fs.StudentT(0.7, df=5),
    "by name": {"*.bias": fs.Laplace(2.0), "*": fs.Normal("fan_in")},
    "sampled scale": fs.Normal(fs.HalfNormal(0.7)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_draws_and_densities_are_those_of_the_prior_that_was_given(name):
    posterior, x, y = problem(20)
    model = BayesianNetwork(posterior.network, x, y, PRIORS[name], fs.Gaussian(fs.HalfNormal(1.0)))
    np.random.seed(0)  # noqa: NPY002
    theta, posterior = model.prior.rvs(size=4000), model.posterior
    weights = theta["weights"].astype(np.float32)
    assert weights.shape == (4000, posterior.num_params)
    np.testing.assert_allclose(model.prior.logpdf(theta), posterior.log_prior(weights), rtol=1e-6)
    again = posterior.sample_prior(4000, seed=5)
    error = np.sqrt((weights.var(0) + again.var(0)) / 4000)
    assert np.all(np.abs(np.abs(weights).mean(0) - np.abs(again).mean(0)) < 5 * error)  # false alarm 1e-5
    assert not np.array_equal(model.prior.rvs(size=3)["weights"], theta["weights"][:3])


SAMPLERS = {
    "IBIS": {},
    "Tempering": {"exponents": np.linspace(0, 1, 21)[1:] ** 2},
    "AdaptiveTempering": {},
}


def test_moves_know_the_density_under_other_priors():
    """What is known of moved particles is their density under Laplace's prior and a noise that is sampled."""
    posterior, x, y = problem(20)
    model = BayesianNetwork(posterior.network, x, y, fs.Laplace(0.7), fs.Gaussian(fs.HalfNormal(1.0)))
    np.random.seed(0)  # noqa: NPY002
    start = smc_samplers.ThetaParticles(theta=model.prior.rvs(size=50))
    start.lpost = model.logpost(start.theta)
    before = start.theta["weights"].copy()
    moves = HMC(model, 5, step_size=0.01)
    moves.calibrate(np.full(50, 1 / 50), start)
    assert moves.step(start) > 0.5
    assert not np.array_equal(start.theta["weights"], before)
    np.testing.assert_allclose(start.lpost, model.logpost(start.theta), rtol=1e-4)


@pytest.mark.skipif(not hasattr(smc_samplers, "Tempering"), reason="particles 0.3; pip takes it beside NumPy 2")
@pytest.mark.statistics
@pytest.mark.parametrize("waste_free", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_find_the_evidence_and_the_posterior(sampler, waste_free):
    """By Student's t over ten runs, of log evidence, means and variances: false alarm 1e-4, the seeds are fixed."""
    found = []
    for seed in range(10):
        np.random.seed(seed)  # noqa: NPY002
        model, (log_evidence, mean, covariance) = regression()
        kind = smc_samplers.MCMCSequenceWF if waste_free else smc_samplers.AdaptiveMCMCSequence
        move = kind(mcmc=HMC(model, 5), len_chain=4)
        options = {"wastefree": waste_free, "len_chain": 4, "move": move, **SAMPLERS[sampler]}
        fk = getattr(smc_samplers, sampler)(model=model, **options)
        run = particles.SMC(fk=fk, N=100 if waste_free else 400, resampling="fastsmc_systematic", collect="off")
        run.run()
        error = run.X.theta["weights"] - mean
        found.append([run.logLt - log_evidence, *(run.W @ error), *(run.W @ error**2 / np.diag(covariance) - 1)])
    t = np.mean(found, 0) / (np.std(found, 0, ddof=1) / np.sqrt(10))
    assert np.all(np.abs(t) < 6.6), t
    assert np.std(found, axis=0)[0] < 0.5
