"""particles' adaptive tempering of a network, with our resampling by its name and our trajectories as its moves."""

import numpy as np
import particles
from particles import smc_samplers
from scipy.stats import multivariate_normal

import fastsmc as fs
from fastsmc.integrations.particles import HMC, BayesianNetwork

rng = np.random.default_rng(0)
np.random.seed(0)  # noqa: NPY002  (the library's generator)
x = rng.standard_normal((50, 3), np.float32)
y = x @ np.float32([1, -2, 0.5]) + rng.standard_normal(50, np.float32)

model = BayesianNetwork(fs.MLP([3, 1]), x, y, likelihood=fs.Gaussian(1.0))  # of which the evidence is known
moves = smc_samplers.MCMCSequenceWF(mcmc=HMC(model, num_steps=10), len_chain=5)
run = particles.SMC(
    fk=smc_samplers.AdaptiveTempering(model=model, len_chain=5, move=moves),
    N=200,
    resampling="fastsmc_systematic",
)
run.run()
exact = multivariate_normal(cov=np.eye(50) + x @ x.T + 1).logpdf(y)
print(f"log evidence {run.logLt:.2f}, exact {exact:.2f}")
