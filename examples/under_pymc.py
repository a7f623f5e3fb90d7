"""PyMC's sample_smc with our kernel, which evaluates and moves all particles at once."""

import numpy as np
import pymc as pm
from scipy.stats import multivariate_normal

from fastsmc.integrations.pymc import IMH

rng = np.random.default_rng(0)
x = rng.standard_normal((50, 3))
y = x @ [1, -2, 0.5] + rng.standard_normal(50)
with pm.Model():
    slope = pm.Normal("slope", 0, 1, shape=3)
    pm.Normal("y", x @ slope, 1, observed=y)
    trace = pm.sample_smc(1000, kernel=IMH, chains=2, cores=1, progressbar=False, random_seed=0)
evidence = np.mean([chain[-1] for chain in trace.sample_stats.log_marginal_likelihood.values])
exact = multivariate_normal(cov=np.eye(50) + x @ x.T).logpdf(y)
print(f"log evidence {evidence:.2f}, exact {exact:.2f}")
