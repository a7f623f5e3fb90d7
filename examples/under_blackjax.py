"""blackjax's adaptive tempered SMC with our density, resampling and moves, each of which it takes as its own."""

import blackjax
import jax
import numpy as np
from blackjax.smc import extend_params
from scipy.stats import multivariate_normal

import fastsmc as fs
from fastsmc.integrations.blackjax import bnn_log_likelihood, fused_hmc, systematic

rng = np.random.default_rng(0)
x = rng.standard_normal((50, 3), np.float32)
y = x @ np.float32([1, -2, 0.5]) + rng.standard_normal(50, np.float32)
net, likelihood = fs.MLP([3, 1]), fs.Gaussian(1.0)  # of which the evidence is known
parameters = {"step_size": 0.1, "inverse_mass_matrix": np.ones(net.num_params), "num_integration_steps": 10}
density = bnn_log_likelihood(net, x, y, likelihood)
prior = lambda theta: jax.scipy.stats.norm.logpdf(theta).sum()  # noqa: E731
hmc, moves = (blackjax.hmc.build_kernel(), blackjax.hmc.init), fused_hmc(net, x, y, 10, likelihood=likelihood)
options = {"num_mcmc_steps": 5, "update_particles_fn": moves}
smc = blackjax.adaptive_tempered_smc(prior, density, *hmc, extend_params(parameters), systematic, 0.5, **options)
state, step, evidence = smc.init(jax.random.normal(jax.random.key(0), (500, 4))), jax.jit(smc.step), 0.0
while state.tempering_param < 1:
    state, info = step(jax.random.key(int(1e6 * state.tempering_param)), state)
    evidence += info.log_likelihood_increment
exact = multivariate_normal(cov=np.eye(50) + x @ x.T + 1).logpdf(y)
print(f"log evidence {evidence:.2f}, exact {exact:.2f}")
