"""The kernels as plain functions: a bootstrap filter of a linear Gaussian model, beside Kalman's exact evidence."""

import numpy as np

import fastsmc as fs

SHIFT, NOISE, STEPS, PARTICLES = 0.9, 0.5, 100, 10_000
rng = np.random.default_rng(0)
state, observed = 0.0, []
for _ in range(STEPS):
    state = SHIFT * state + rng.standard_normal()
    observed.append(state + NOISE * rng.standard_normal())

mean, variance, exact = 0.0, 0.0, 0.0
for y in observed:
    mean, variance = SHIFT * mean, SHIFT**2 * variance + 1
    total = variance + NOISE**2
    exact -= 0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
    mean, variance = mean + variance / total * (y - mean), variance * NOISE**2 / total

particles, log_weights, estimate = np.zeros(PARTICLES), np.full(PARTICLES, -np.log(PARTICLES)), 0.0
for y in observed:
    particles = SHIFT * particles + rng.standard_normal(PARTICLES)
    log_weights += -0.5 * (np.log(2 * np.pi * NOISE**2) + ((y - particles) / NOISE) ** 2)
    step = fs.adaptive_resample(log_weights, u=rng.random(), threshold=0.5)
    fs.gather_particles(particles, step.ancestors, out=particles)  # in place: survivors are not moved
    log_weights = step.log_weights
    estimate += step.log_sum

print(f"log evidence {estimate:.2f}, exact {exact:.2f}")
