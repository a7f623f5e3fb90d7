"""A torch module: as a whole, with a part that stays as it was trained, and with a likelihood of one's own."""

import numpy as np
import torch
from torch import nn

import fastsmc as fs

rng = np.random.default_rng(0)
x = rng.standard_normal((200, 2)).astype(np.float32)
y = np.sin(2 * x[:, 0]) + 0.1 * rng.standard_t(2, 200)  # with outliers


class Residual(nn.Module):
    """No chain of layers: it goes through torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, x):
        """Of samples [B, 2]: [B, 1]."""
        h = self.first(x).tanh()
        return self.last(h + h**2)


def trained(module):
    """The module, by Adam."""
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)[:, None].float()
    for _ in range(200):
        optimiser.zero_grad()
        (module(inputs) - targets).abs().mean().backward()
        optimiser.step()
    return module


def heavy_tailed(outputs, y):
    """Log density of every sample, [B], from outputs [B, 1] and targets [B, 1]."""
    return torch.distributions.StudentT(2.0, outputs, 0.1).log_prob(y).sum(-1)


network = fs.from_torch(trained(Residual()), fixed=["first.*"])  # its first layer is not sampled
post = fs.Posterior(network, prior=fs.Normal(1.0), likelihood=heavy_tailed)
print(post.path)
scheme = fs.AdaptiveDataAnnealing(start=50, settle=5)
result = fs.SMC(post, num_particles=32, annealing=scheme).run(x, y[:, None])
error = result.predict(x)[:, 0] - np.sin(2 * x[:, 0])
print("mean error against the noise-free function:", np.abs(error).mean())

# a chain of layers is computed by the kernels; a run may start at networks that are trained
chains = [trained(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))) for _ in range(2)]
post = fs.Posterior(fs.from_torch(chains[0]), likelihood=fs.Gaussian(noise=0.2))
print(post.path)
warm = fs.SMC(post, num_particles=32, annealing=scheme).run(x, y, initial=chains)
print(warm.warnings[0])
