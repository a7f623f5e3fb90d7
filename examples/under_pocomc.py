"""pocoMC with a network's density of all particles at once, whose resampling is ours while the context lasts."""

import numpy as np
import pocomc
from scipy.stats import multivariate_normal, norm

import fastsmc as fs

rng = np.random.default_rng(0)
x = rng.standard_normal((50, 3), np.float32)
y = x @ np.float32([1, -2, 0.5]) + rng.standard_normal(50, np.float32)
posterior = fs.Posterior(fs.MLP([3, 1]), likelihood=fs.Gaussian(1.0))  # of which the evidence is known

with fs.accelerate("pocomc") as replaced:
    sampler = pocomc.Sampler(
        pocomc.Prior([norm(0, 1)] * posterior.num_params),
        lambda theta: posterior.log_likelihood(theta.astype(np.float32), x, y),
        vectorize=True,
        precondition=False,
        resample="syst",
        random_state=0,
    )
    sampler.run(n_total=2048, n_evidence=2048, progress=False)
evidence, error = sampler.evidence()
exact = multivariate_normal(cov=np.eye(50) + x @ x.T + 1).logpdf(y)
print(f"log evidence {evidence:.2f}, exact {exact:.2f}, by {', '.join(replaced)}")
