"""Bayesian linear regression, a network without hidden layer: every target of the sampler in closed form."""

import numpy as np

import fastsmc as fs
from fastsmc.batches import Data

NOISE, SCALE, INPUTS = 1.0, 1.0, 2

# |t| beyond this happens with probability 1e-6 for 29 degrees of freedom (30 runs), two-sided
T_LIMIT = 6.12
RUNS = 30


def problem(num_data, seed=3):
    """A data set and its model."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_data, INPUTS)).astype(np.float32)
    y = (x @ rng.normal(size=INPUTS) * 0.5 + 0.3 + NOISE * rng.normal(size=num_data)).astype(np.float32)
    return fs.Posterior(fs.MLP([INPUTS, 1]), fs.Normal(SCALE), fs.Gaussian(NOISE)), x, y


def closed_form(posterior, x, y, seed, target):
    """Log normaliser, mean and covariance of ``p(theta) * p(y | x, theta)^power`` for the batch of a target."""
    rows, values = (a.astype(np.float64) for a in Data(x, y, posterior, seed).batch(target)[:2])
    design, values = np.column_stack([rows, np.ones(len(rows))]), values[:, 0]
    weight = target.power / NOISE**2
    precision = np.eye(INPUTS + 1) / SCALE**2 + weight * design.T @ design
    covariance = np.linalg.inv(precision)
    mean = covariance @ (weight * design.T @ values)
    log_normaliser = (
        -0.5 * target.power * len(values) * np.log(2 * np.pi * NOISE**2)
        - 0.5 * (INPUTS + 1) * np.log(SCALE**2)
        - 0.5 * np.linalg.slogdet(precision)[1]
        - 0.5 * weight * values @ values
        + 0.5 * mean @ precision @ mean
    )
    return log_normaliser, mean, covariance


def t_statistic(sample, truth, error=0.0):
    """How many standard errors the mean of a sample lies from the truth, which has one of its own, for each column."""
    sample = np.asarray(sample)
    return (sample.mean(axis=0) - truth) / np.hypot(sample.std(axis=0, ddof=1) / np.sqrt(len(sample)), error)


def errors(num_data, sampler):
    """Of repeated runs, against the closed form of their last target: Z_hat / Z, mean, second moments.

    ``sampler`` makes one from a posterior and a seed.
    """
    posterior, x, y = problem(num_data)
    ratios, means, seconds = [], [], []
    for seed in range(RUNS):
        result = sampler(posterior, seed).run(x, y, progress=False)
        log_normaliser, mean, covariance = closed_form(posterior, x, y, seed, result.target)
        error = result.particles.astype(np.float64) - mean
        ratios.append(np.exp(result.history.log_evidence[-1] - log_normaliser))
        means.append(result.weights @ error / np.sqrt(np.diag(covariance)))
        seconds.append(result.weights @ error**2 / np.diag(covariance))
    return np.array(ratios), np.array(means), np.array(seconds)


def runs(num_data, annealing, move, num_iterations, num_particles=256, **options):
    """Errors of `fs.SMC`."""

    def sampler(posterior, seed):
        return fs.SMC(posterior, num_particles, annealing, move, num_iterations, seed=seed, **options)

    return errors(num_data, sampler)


def assert_moments(means, seconds):
    """The weighted mean and second moment of every weight are right."""
    assert np.all(np.abs(t_statistic(means, 0.0)) < T_LIMIT), means.mean(axis=0)
    assert np.all(np.abs(t_statistic(seconds, 1.0)) < T_LIMIT), seconds.mean(axis=0)


def assert_exact(ratios, means, seconds):
    """Z_hat is unbiased, and the moments are right."""
    assert np.all(np.abs(t_statistic(ratios, 1.0)) < T_LIMIT), (ratios.mean(), ratios.std())
    assert_moments(means, seconds)
