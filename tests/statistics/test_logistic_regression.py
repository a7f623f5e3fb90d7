"""Logistic regression against quadrature, and a small network against a long independent run.

The references are NumPy in float64 and share nothing with the library. Each check compares the mean of 30 runs with
the truth at T_LIMIT, so that one of a test's at most 20 comparisons fails for a right sampler with probability below
2e-5, under normality of the means.
"""

import numpy as np
import pytest
from conjugate import RUNS, T_LIMIT, t_statistic
from numpy.polynomial.hermite import hermgauss
from reference_hmc import BernoulliPosterior, Linear, Tanh, hmc, sigmoid
from schemes import SCHEMES

import fastsmc as fs

pytestmark = pytest.mark.statistics

MOVES = {
    "hmc": fs.HMC(num_steps=5, step_size=0.15),
    "kinetic langevin": fs.KineticLangevin(num_steps=3, step_size=0.2, num_moves=2),
    "hmc, unadjusted": fs.HMC(num_steps=5, step_size=0.1, adjusted=False),
}


def around_the_mode(posterior, functional, nodes):
    """Log evidence and means of ``functional`` by a Gauss-Hermite rule with the curvature of the mode on every axis."""
    size = posterior.model.size
    mode = np.zeros((1, size))
    steps = 1e-5 * np.eye(size)
    for _ in range(20):
        hessian = (posterior.grad(mode + steps) - posterior.grad(mode - steps)) / 2e-5
        mode = mode - np.linalg.solve(hessian, posterior.grad(mode)[0])
    scale = np.sqrt(2) * np.linalg.cholesky(np.linalg.inv(-hessian))
    points, weights = hermgauss(nodes)
    z = np.stack(np.meshgrid(*[points] * size), axis=-1).reshape(-1, size)
    log_weights = np.log(np.stack(np.meshgrid(*[weights] * size), axis=-1)).reshape(-1, size).sum(axis=1)
    theta = mode + z @ scale.T
    terms = posterior.log_density(theta) + log_weights + np.sum(z**2, axis=1) + np.linalg.slogdet(scale)[1]
    share = np.exp(terms - terms.max())
    return terms.max() + np.log(share.sum()), share @ functional(theta) / share.sum()


class Logistic:
    """60 points with three features."""

    def __init__(self, prior_scale=1.0):
        rng = np.random.default_rng(5)
        self.x = rng.normal(size=(60, 3)).astype(np.float32)
        self.y = rng.random(60) < sigmoid(self.x @ [1.0, -1.5, 0.5] + 0.3)
        self.reference = BernoulliPosterior(Linear(3), self.x, self.y)
        self.posterior = fs.Posterior(fs.MLP([3, 1]), fs.Normal(prior_scale), "bernoulli")

    def functional(self, theta):
        """Weights, their squares, and predictions at three points: [C, 11]."""
        return np.concatenate([theta, theta**2, self.reference.predict(theta, 2 * np.eye(3))], axis=1)


class Network:
    """40 points of two classes that no line divides."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.x = rng.normal(size=(40, 2)).astype(np.float32)
        self.y = np.sin(2 * self.x[:, 0]) + self.x[:, 0] * self.x[:, 1] + 0.5 * rng.normal(size=40) > 0
        self.reference = BernoulliPosterior(Tanh(2, 4), self.x, self.y)
        self.posterior = fs.Posterior(fs.MLP([2, 4, 1], activation="tanh"), likelihood="bernoulli")
        self.grid = np.stack(np.meshgrid(*[[-1.5, 0, 1.5]] * 2), axis=-1).reshape(-1, 2)

    def functional(self, theta):
        """Predictions, their squares, and the norm, which neither exchange nor signs of hidden units alter: [C, 19]."""
        predictions = self.reference.predict(theta, self.grid)
        return np.concatenate([predictions, predictions**2, np.sum(theta**2, axis=1, keepdims=True)], axis=1)


LOGISTIC, NETWORK = Logistic(), Network()


@pytest.fixture(scope="module")
def quadrature():
    """Log evidence and means of the logistic regression."""
    return around_the_mode(LOGISTIC.reference, LOGISTIC.functional, nodes=16)


@pytest.fixture(scope="module")
def long_run():
    """Means of the network."""
    return hmc(NETWORK.reference, NETWORK.functional, num_chains=64, num_samples=1000, step_size=0.2, num_steps=10)


def runs(problem, annealing, move, num_iterations):
    """Log evidence [RUNS] and means of the functional [RUNS, k] of independent runs."""
    results = [
        fs.SMC(problem.posterior, 512, annealing, move, num_iterations, seed=seed).run(
            problem.x, problem.y, progress=False
        )
        for seed in range(RUNS)
    ]
    means = [r.weights @ problem.functional(r.particles.astype(np.float64)) for r in results]
    return np.array([r.log_evidence for r in results]), np.array(means)


BOTH = "data annealing", "smooth, scaled", "adaptive data annealing"
"""Schemes with kinetic Langevin too."""


@pytest.mark.parametrize(
    ("scheme", "move"), [(scheme, "hmc") for scheme in SCHEMES] + [(scheme, "kinetic langevin") for scheme in BOTH]
)
def test_logistic_regression(quadrature, scheme, move):
    """The evidence of scaled likelihoods is left out: it is so skewed that the mean of 30 runs says nothing."""
    annealing, iterations = SCHEMES[scheme]
    log_evidence, means = runs(LOGISTIC, annealing, MOVES[move], iterations)
    assert np.all(np.abs(t_statistic(means, quadrature[1])) < T_LIMIT)
    if "scaled" not in scheme:
        assert np.abs(t_statistic(np.exp(log_evidence - quadrature[0]), 1.0)) < T_LIMIT


@pytest.mark.parametrize(
    ("scheme", "move"),
    [
        *[("data annealing", move) for move in MOVES],
        ("adaptive data annealing", "kinetic langevin"),
        ("adaptive tempering", "hmc"),
    ],
)
def test_small_network(long_run, scheme, move):
    annealing, iterations = SCHEMES[scheme]
    _, means = runs(NETWORK, annealing, MOVES[move], iterations)
    assert np.all(np.abs(t_statistic(means, long_run.mean, long_run.error)) < T_LIMIT)


def test_a_prior_that_is_a_fifth_too_wide_is_caught(quadrature):
    annealing, iterations = SCHEMES["data annealing"]
    _, means = runs(Logistic(prior_scale=1.2), annealing, MOVES["hmc"], iterations)
    assert np.max(np.abs(t_statistic(means, quadrature[1]))) > T_LIMIT


def test_the_references_agree(quadrature):
    """Quadrature of twelve nodes an axis is right to 1e-5, and the long run is within its own error of it."""
    log_evidence, means = around_the_mode(LOGISTIC.reference, LOGISTIC.functional, nodes=12)
    assert abs(log_evidence - quadrature[0]) < 1e-6
    assert np.max(np.abs(means - quadrature[1])) < 1e-5
    run = hmc(LOGISTIC.reference, LOGISTIC.functional, num_chains=64, num_samples=1000, step_size=0.25, num_steps=6)
    assert np.all(np.abs(run.mean - quadrature[1]) < T_LIMIT * run.error)
    assert np.all(run.error < 0.006)


@pytest.mark.parametrize("problem", [LOGISTIC, NETWORK])
def test_gradients_of_the_reference(problem):
    posterior = problem.reference
    theta, step = np.random.default_rng(0).normal(size=(1, posterior.model.size)), 1e-5 * np.eye(posterior.model.size)
    slopes = (posterior.log_density(theta + step) - posterior.log_density(theta - step)) / 2e-5
    np.testing.assert_allclose(posterior.grad(theta)[0], slopes, rtol=0, atol=1e-7)
