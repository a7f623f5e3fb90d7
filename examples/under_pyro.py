"""Pyro's particle filter, whose resampling is ours while the context lasts."""

from types import SimpleNamespace as Program

import pyro
import torch
from pyro.distributions import Normal
from pyro.infer import SMCFilter

import fastsmc as fs

pyro.set_rng_seed(0)
observed = torch.randn(50).cumsum(0) + 0.5 * torch.randn(50)
first = lambda state: pyro.sample("first", Normal(0, 1))  # noqa: E731
walk = lambda state, y: pyro.sample("next", Normal(state["z"], 1))  # noqa: E731
see = lambda state, y: pyro.sample("y", Normal(state["z"], 0.5), obs=y)  # noqa: E731
model = Program(init=lambda s: s.update(z=first(s)), step=lambda s, y: (s.update(z=walk(s, y)), see(s, y)))

with fs.accelerate("pyro"):
    particle_filter = SMCFilter(model, Program(init=first, step=walk), num_particles=10_000, max_plate_nesting=0)
    particle_filter.init()
    for y in observed:
        particle_filter.step(y)
found, exact, variance = particle_filter.get_empirical()["z"].mean, 0.0, 1.0
for y in observed:  # Kalman's filter
    gain = (variance + 1) / (variance + 1.25)
    exact, variance = exact + gain * (y - exact), gain * 0.25
print(f"mean of the last state {found:.3f}, exact {exact:.3f}")
