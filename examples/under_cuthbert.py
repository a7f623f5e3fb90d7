"""cuthbert's particle filter with our systematic resampling."""

import cuthbert
import jax
import numpy as np
from cuthbert.smc.particle_filter import build_filter
from jax.scipy.stats import norm
from scipy.stats import multivariate_normal

from fastsmc.integrations.cuthbert import resampling

SHIFT, STEPS = 0.9, 50
rng = np.random.default_rng(0)
transitions = np.tril(SHIFT ** np.maximum(np.arange(STEPS)[:, None] - np.arange(STEPS), 0))
observed = transitions @ rng.standard_normal(STEPS) + 0.5 * rng.standard_normal(STEPS)

particle_filter = build_filter(
    init_sample=lambda key: jax.numpy.zeros(()),
    propagate_sample=lambda key, state, y: SHIFT * state + jax.random.normal(key),
    log_potential=lambda before, state, y: norm.logpdf(y, state, 0.5),
    n_filter_particles=10_000,
    resampling_fn=resampling,
)
first = particle_filter.init_prepare(key=jax.random.key(0))
states = cuthbert.filter(particle_filter, observed, first, key=jax.random.key(1))
exact = multivariate_normal(cov=transitions @ transitions.T + 0.25 * np.eye(STEPS)).logpdf(observed)
print(f"log evidence {states.log_normalizing_constant[-1]:.2f}, exact {exact:.2f}")
