"""blackjax's adaptive tempered SMC with our density, resampling and moves, each of which it takes as its own."""

import blackjax
import jax
import numpy as np
from blackjax.smc import extend_params

import fastsmc as fs
from fastsmc.integrations.blackjax import bnn_log_likelihood, fused_hmc, systematic

rng = np.random.default_rng(0)
x = rng.standard_normal((200, 4)).astype(np.float32)
y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
net = fs.MLP([4, 8, 2], "tanh")

parameters = {"step_size": 0.05, "inverse_mass_matrix": np.ones(net.num_params), "num_integration_steps": 10}
smc = blackjax.adaptive_tempered_smc(
    lambda theta: jax.scipy.stats.norm.logpdf(theta).sum(),
    bnn_log_likelihood(net, x, y),
    blackjax.hmc.build_kernel(),
    blackjax.hmc.init,
    extend_params(parameters),
    systematic,
    0.5,
    num_mcmc_steps=5,
    update_particles_fn=fused_hmc(net, x, y, num_integration_steps=10),
)
state, step = smc.init(jax.random.normal(jax.random.key(0), (100, net.num_params))), jax.jit(smc.step)
for k in range(100):
    state, info = step(jax.random.key(k), state)
    if state.tempering_param >= 1:
        break
print(f"at temperature 1 after {k + 1} iterations")
