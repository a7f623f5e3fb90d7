"""TensorFlow Probability's tempered SMC on JAX with our resampling, and a network's density for its likelihood."""

import jax
import numpy as np
from tensorflow_probability.substrates.jax.experimental.mcmc import sample_sequential_monte_carlo

import fastsmc as fs
from fastsmc.integrations.jax import log_likelihood
from fastsmc.integrations.tfp import resample_systematic

rng = np.random.default_rng(0)
x = rng.standard_normal((50, 3), np.float32)
y = x @ np.float32([1, -2, 0.5]) + rng.standard_normal(50, np.float32)
_, particles, _ = sample_sequential_monte_carlo(
    lambda theta: jax.scipy.stats.norm.logpdf(theta).sum(-1),
    jax.vmap(log_likelihood(fs.MLP([3, 1]), x, y, fs.Gaussian(1.0))),  # of which the mean is known
    jax.random.normal(jax.random.key(0), (2000, 4)),
    resample_fn=resample_systematic,
    seed=jax.random.key(1),
)
design = np.c_[x, np.ones(50)]
exact = np.linalg.solve(design.T @ design + np.eye(4), design.T @ y)
print(f"mean of a slope {particles[:, 0].mean():.3f}, exact {exact[0]:.3f}")
