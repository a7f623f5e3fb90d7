"""posteriors' stochastic-gradient HMC of all particles at once, on a network's density and mini-batches."""

import posteriors
import torch

import fastsmc as fs
from fastsmc.integrations.posteriors import log_posterior_of

torch.manual_seed(0)
x = torch.randn(200, 3)
y = x @ torch.tensor([1, -2, 0.5]) + torch.randn(200)
posterior = fs.Posterior(fs.MLP([3, 1]), likelihood=fs.Gaussian(1.0))  # of which the mean is known
log_posterior = log_posterior_of(posterior, num_data=len(x))

transform = posteriors.sgmcmc.sghmc.build(log_posterior, lr=0.1, alpha=0.5, temperature=1 / len(x))
state = transform.init(torch.from_numpy(posterior.sample_prior(500)))
for _ in range(300):
    batch = torch.randperm(len(x))[:100]
    state, log_likelihoods = transform.update(state, (x[batch], y[batch]))
design = torch.cat([x, torch.ones(len(x), 1)], 1)
exact = torch.linalg.solve(design.T @ design + torch.eye(4), design.T @ y)
print(f"mean of a slope {state.params[:, 0].mean():.3f}, exact {exact[0]:.3f}")
