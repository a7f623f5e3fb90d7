"""Simulation-based calibration (Talts, Betancourt, Simpson, Vehtari and Gelman, 2018).

Weights drawn from the prior and data drawn from them: among draws from the posterior the rank of what made the data is
uniform, for every quantity, if and only if the sampler is right on average over the prior. The log-likelihood is a
quantity that sees samplers which ignore the data (Modrak and others, 2023).

Uniformity is Neyman's smooth test: the mean of each of the first four Legendre polynomials of the rank. By Bernstein's
inequality, which needs no large number of simulations, each of the at most 16 comparisons of a test fails for a right
sampler with probability below 1e-8, and one of all those in this file with probability below 1e-5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

import fastsmc as fs
from fastsmc.lkernels import Unweighted

pytestmark = pytest.mark.statistics

SIMULATIONS, DRAWS, PARTICLES = 400, 15, 128
ORDER, FALSE_ALARM = 4, 1e-8


@dataclass(frozen=True)
class Model:
    """What is simulated, and the quantities whose ranks are taken: of particles, x and y."""

    posterior: fs.Posterior
    num_data: int
    quantities: Callable


def weights(posterior, particles, x, y):
    return np.column_stack([particles, posterior.log_likelihood(particles, x, y)])


def invariants(posterior, particles, x, y):
    """Hidden units may be exchanged and change their signs; these do not notice."""
    predictions = posterior.outputs(particles, np.array([[-1.0], [1.0]], np.float32))[..., 0]
    return np.column_stack([predictions, posterior.log_likelihood(particles, x, y), posterior.log_prior(particles)])


MODELS = {
    "linear": Model(fs.Posterior(fs.MLP([2, 1]), likelihood=fs.Gaussian(1.0)), 12, weights),
    "logistic": Model(fs.Posterior(fs.MLP([2, 1]), likelihood="bernoulli"), 20, weights),
    "network": Model(fs.Posterior(fs.MLP([1, 3, 1], activation="tanh"), likelihood=fs.Gaussian(0.5)), 10, invariants),
}

SCHEMES = {
    "full batch": (fs.FullBatch(), 6),
    "data annealing": (fs.DataAnnealing(start=3), 8),
    "adaptive data annealing": (fs.AdaptiveDataAnnealing(start=4, settle=3), 100),
    "tempering": (fs.LikelihoodTempering(), 100),
}

MOVES = {
    "hmc": fs.HMC(num_steps=5, step_size=0.2, num_moves=2, jitter=0.0),
    "kinetic langevin": fs.KineticLangevin(num_steps=3, step_size=0.2, num_moves=3),
}


def simulate(model, rng):
    """Weights [1, d] from the prior, and data from them."""
    posterior = model.posterior
    truth = (rng.normal(size=(1, posterior.network.num_params)) * posterior.prior_scales).astype(np.float32)
    x = rng.normal(size=(model.num_data, posterior.network.parameters[0].fan_in)).astype(np.float32)
    mean = posterior.likelihood.expectation(torch.from_numpy(posterior.outputs(truth, x))).numpy()[0, :, 0]
    noisy = mean + posterior.likelihood.noise * rng.normal(size=len(x))
    return truth, x, rng.random(len(x)) < mean if posterior.likelihood.name == "bernoulli" else noisy


def ranks(model, sample):
    """Of what made the data among draws from ``sample(x, y, seed)``, in (0, 1): [simulations, quantities]."""
    found = []
    for seed in range(SIMULATIONS):
        rng = np.random.default_rng([2018, seed])
        truth, x, y = simulate(model, rng)
        result = sample(x, y, seed=seed)
        drawn = result.particles[fs.systematic(result.weights, rng.random(), DRAWS)]
        values = model.quantities(model.posterior, np.concatenate([truth, drawn]), x, y)
        rank = np.count_nonzero(values[1:] < values[0], axis=0)
        found.append((rank + rng.random(len(rank))) / (DRAWS + 1))
    return np.array(found)


def sampler(model, scheme, move):
    """The library's, as a function of x, y and the seed."""
    annealing, iterations = SCHEMES[scheme]
    smc = partial(fs.SMC, MODELS[model].posterior, PARTICLES, annealing, move, iterations)
    return lambda x, y, seed: smc(seed=seed).run(x, y, progress=False)


def departures(u):
    """How far from uniform, in units of the limit: [polynomials, quantities], none beyond 1 for a right sampler."""
    order = np.arange(1, ORDER + 1)
    bound = np.sqrt(2 * order + 1)  # of the polynomials, whose mean is zero and whose variance is one
    polynomials = legendre.legvander(2 * u - 1, ORDER)[..., 1:] * bound
    log_odds = np.log(2 / FALSE_ALARM)
    slack = log_odds * bound / (3 * np.sqrt(len(u)))
    limit = slack + np.sqrt(slack**2 + 2 * log_odds)
    return (np.sqrt(len(u)) * polynomials.mean(axis=0) / limit).T


def is_uniform(model, sample):
    return bool(np.all(np.abs(departures(ranks(MODELS[model], sample))) < 1))


CASES = [(model, scheme, "hmc") for model in ("linear", "network") for scheme in SCHEMES]
CASES.remove(("network", "full batch", "hmc"))  # see the last test
CASES += [("logistic", "data annealing", move) for move in MOVES] + [("network", "data annealing", "kinetic langevin")]


@pytest.mark.parametrize(("model", "scheme", "move"), CASES)
def test_ranks_are_uniform(model, scheme, move):
    assert is_uniform(model, sampler(model, scheme, MOVES[move]))


@pytest.mark.parametrize("model", ["linear", "network"])
def test_a_likelihood_that_counts_twice_is_caught(model):
    right = sampler(model, "data annealing", MOVES["hmc"])
    assert not is_uniform(model, lambda x, y, seed: right(np.tile(x, (2, 1)), np.tile(y, 2), seed))


def test_data_that_are_left_out_are_caught():
    right = sampler("linear", "data annealing", MOVES["hmc"])
    assert not is_uniform("linear", lambda x, y, seed: right(x[:4], y[:4], seed))


@dataclass(frozen=True)
class UnweightedLangevin(fs.Langevin):
    """Its end points are taken as they are."""

    def backward_kernel(self, target):
        return Unweighted()


def test_long_unadjusted_steps_without_weights_are_caught():
    """As long as the posterior is wide."""
    move = UnweightedLangevin(step_size=0.4, num_moves=5)
    assert not is_uniform("linear", sampler("linear", "data annealing", move))


def test_a_collapse_to_a_few_ancestors_is_caught():
    """All the data at once leave a network a handful of its draws from the prior, which the moves do not forget."""
    assert not is_uniform("network", sampler("network", "full batch", MOVES["hmc"]))
