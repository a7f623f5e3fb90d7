"""Linear regression with priors and noises that have no closed form, against quadrature.

Given scale and noise the targets are normal, so that evidence and posterior means are integrals over these two; with
other priors of two weights, over the weights.
"""

import numpy as np
import pytest
from conjugate import RUNS, T_LIMIT, t_statistic
from scipy import stats

import fastsmc as fs

pytestmark = pytest.mark.statistics

rng = np.random.default_rng(8)
X = rng.normal(size=(15, 1)).astype(np.float32)
Y = (0.8 * X[:, 0] - 0.4 + 0.3 * rng.normal(size=15)).astype(np.float32)
DESIGN = np.column_stack([X, np.ones(15)]).astype(np.float64)


def averages(log_density, quantities):
    """Log of the sum of a density on a grid, and the means of quantities under it."""
    weights = np.exp(log_density - log_density.max())
    means = np.array([np.sum(weights * q) for q in quantities]) / weights.sum()
    return log_density.max() + np.log(weights.sum()), means


def sampled_scales():
    """Log evidence; means of slope, intercept, log scale and log noise."""
    steps = np.linspace(-7, 4, 400)
    log_scale, log_noise = np.meshgrid(steps, steps, indexing="ij")
    scale, noise = np.exp(log_scale), np.exp(log_noise)
    values, vectors = np.linalg.eigh(DESIGN @ DESIGN.T)
    spread = noise[..., None] ** 2 + scale[..., None] ** 2 * np.maximum(values, 0)
    projected = vectors.T @ Y
    log_density = -0.5 * np.sum(projected**2 / spread + np.log(2 * np.pi * spread), axis=-1)
    log_density += stats.halfnorm(scale=1.0).logpdf(scale) + log_scale
    log_density += stats.halfcauchy(scale=0.5).logpdf(noise) + log_noise
    means = scale[..., None] ** 2 * ((projected / spread) @ (DESIGN.T @ vectors).T)
    log_sum, found = averages(log_density, (means[..., 0], means[..., 1], log_scale, log_noise))
    return log_sum + 2 * np.log(steps[1] - steps[0]), found


def heavy_tails():
    """Log evidence; means of slope and intercept."""
    steps = np.linspace(-4, 4, 1601)
    slope, intercept = np.meshgrid(steps, steps, indexing="ij")
    log_density = stats.laplace(scale=0.3).logpdf(slope) + stats.t(3, scale=0.2).logpdf(intercept)
    for row, y in zip(DESIGN, Y.astype(np.float64), strict=True):
        log_density += stats.norm(slope * row[0] + intercept, 0.3).logpdf(y)
    log_sum, found = averages(log_density, (slope, intercept))
    return log_sum + 2 * np.log(steps[1] - steps[0]), found


NET = fs.MLP([1, 1])
MODELS = {
    "scale and noise": (
        fs.Posterior(NET, fs.Normal(fs.HalfNormal(1.0)), fs.Gaussian(fs.HalfCauchy(0.5))), sampled_scales,
    ),
    "heavy tails": (
        fs.Posterior(NET, {"*.weight": fs.Laplace(0.3), "*.bias": fs.StudentT(0.2, df=3)}, fs.Gaussian(0.3)),
        heavy_tails,
    ),
}  # fmt: skip
SAMPLERS = {
    "adaptive, kinetic Langevin": {
        "annealing": fs.AdaptiveDataAnnealing(start=5, settle=3),
        "move": fs.KineticLangevin(num_steps=3, num_moves=2, precondition=True),
    },
    "tempering, HMC": {"annealing": fs.LikelihoodTempering(), "move": fs.HMC(5, num_moves=2)},
}


@pytest.mark.parametrize(("model", "sampler"), zip(MODELS, SAMPLERS, strict=True))
def test_evidence_and_means_are_those_of_quadrature(model, sampler):
    posterior, truth = MODELS[model]
    log_evidence, means = truth()
    ratios, found = [], []
    for seed in range(RUNS):
        result = fs.SMC(posterior, 256, seed=seed, **SAMPLERS[sampler]).run(X, Y, progress=False)
        parts = posterior.unpack(result.particles)
        columns = [parts["0.weight"], parts["0.bias"], *(np.log(parts[name]) for name in posterior.coordinates.names)]
        ratios.append(np.exp(result.log_evidence - log_evidence))
        found.append([result.weights @ column.ravel().astype(np.float64) for column in columns])
    assert np.all(np.abs(t_statistic(ratios, 1.0)) < T_LIMIT), np.mean(ratios)
    assert np.all(np.abs(t_statistic(found, means)) < T_LIMIT), (np.mean(found, axis=0), means)
