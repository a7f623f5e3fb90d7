"""A regression whose scale of the weights and noise are sampled with the weights."""

import numpy as np

import fastsmc as fs

rng = np.random.default_rng(0)
x = rng.uniform(-2, 2, (200, 1))
y = np.sin(2 * x[:, 0]) + 0.2 * rng.standard_normal(200)

prior = {
    "*.bias": fs.Normal(1.0),
    "*": fs.Normal(fs.HalfNormal(2.0)),  # one scale for all other tensors, sampled
}
post = fs.Posterior(fs.MLP([1, 16, 1], "tanh"), prior, likelihood=fs.Gaussian(noise=fs.HalfNormal(1.0)))
result = fs.SMC(post, num_particles=64).run(x, y)

parts = post.unpack(result.particles)  # weights in their own units, and the scales
for name in post.coordinates.names:
    mean = np.average(parts[name], weights=result.weights)
    deviation = np.average((parts[name] - mean) ** 2, weights=result.weights) ** 0.5
    print(f"{name}: {mean:.3f} ± {deviation:.3f}")
