"""A particle filter in torch, of which torch.compile makes one graph; our operators stay in it."""

import numpy as np
import torch
from scipy.stats import multivariate_normal

from fastsmc.integrations.torch import adaptive_resample

SHIFT, STEPS, PARTICLES = 0.9, 50, 10_000
torch.manual_seed(0)
transitions = torch.tril(SHIFT ** (torch.arange(STEPS)[:, None] - torch.arange(STEPS)).clamp(min=0))
observed = transitions @ torch.randn(STEPS) + 0.5 * torch.randn(STEPS)


@torch.compile(fullgraph=True, backend="aot_eager")
def step(state, log_weights, y, noise, u):
    state = SHIFT * state + noise
    log_weights = log_weights + torch.distributions.Normal(state, 0.5).log_prob(y)
    ancestors, _, log_weights, log_sum, _ = adaptive_resample(log_weights, u)
    return state[ancestors], log_weights, log_sum


state, log_weights, evidence = torch.zeros(PARTICLES), torch.full((PARTICLES,), -np.log(PARTICLES)), 0.0
for y in observed:
    state, log_weights, log_sum = step(state, log_weights, y, torch.randn(PARTICLES), torch.rand(()))
    evidence += log_sum.item()
exact = multivariate_normal(cov=transitions @ transitions.T + 0.25 * torch.eye(STEPS)).logpdf(observed)
print(f"log evidence {evidence:.2f}, exact {exact:.2f}")
