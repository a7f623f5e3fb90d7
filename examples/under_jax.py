"""A tempered sampler of your own in JAX: density, weights and resampling are custom calls, each for all particles."""

import jax
import numpy as np
from scipy.stats import multivariate_normal

import fastsmc as fs
from fastsmc.integrations.jax import log_likelihood, normalize_log_weights, resample

rng = np.random.default_rng(0)
x = rng.standard_normal((50, 3), np.float32)
y = x @ np.float32([1, -2, 0.5]) + rng.standard_normal(50, np.float32)
density = jax.vmap(jax.value_and_grad(log_likelihood(fs.MLP([3, 1]), x, y, fs.Gaussian(1.0))))


def iteration(state, temperature):  # unadjusted Langevin moves, behind weights for the temperature
    (theta, key, before), step = state, 0.1 / (1 + 50 * temperature)
    key, of_u, of_noise = jax.random.split(key, 3)
    weights = normalize_log_weights((temperature - before) * density(theta)[0])
    theta = theta[resample(weights.weights, jax.random.uniform(of_u), log=False)]
    for noise in jax.random.normal(of_noise, (40, *theta.shape)):
        theta += step / 2 * (temperature * density(theta)[1] - theta) + step**0.5 * noise
    return (theta, key, temperature), weights.log_sum - np.log(len(theta))


start = jax.random.normal(jax.random.key(0), (1000, 4)), jax.random.key(1), 0.0
_, increments = jax.lax.scan(iteration, start, np.linspace(0, 1, 31)[1:] ** 3)
exact = multivariate_normal(cov=np.eye(50) + x @ x.T + 1).logpdf(y)
print(f"log evidence {increments.sum():.2f}, exact {exact:.2f}")
