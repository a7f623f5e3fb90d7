"""A reference that shares nothing with the library: NumPy, float64, gradients of its own, many chains side by side.

The prior of every weight is the standard normal; the parameters of a network lie in torch's order, weights [out, in]
before biases.
"""

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean and its Monte Carlo standard error, from the scatter of independent chains."""

    mean: np.ndarray
    error: np.ndarray


def sigmoid(logit):
    return 0.5 * (1 + np.tanh(0.5 * logit))


def log_bernoulli(y, logit):
    """Log probability of y in {0, 1}."""
    return y * logit - np.logaddexp(0, logit)


class Linear:
    """One output, linear in the inputs: d = inputs + 1."""

    def __init__(self, inputs):
        self.size = inputs + 1

    def outputs(self, theta, x):
        """[C, d], [N, inputs] -> [C, N]."""
        return theta[:, :-1] @ x.T + theta[:, -1:]

    def pullback(self, theta, x, sensitivity):
        """Gradient [C, d] of a sum whose derivative by the outputs is ``sensitivity`` [C, N]."""
        return np.concatenate([sensitivity @ x, sensitivity.sum(axis=1, keepdims=True)], axis=1)


class Tanh:
    """One hidden layer of tanh units and one output."""

    def __init__(self, inputs, hidden):
        self.inputs, self.hidden = inputs, hidden
        self.size = (inputs + 2) * hidden + 1

    def layers(self, theta, x):
        """Output weights [C, hidden] and hidden units [C, hidden, N]."""
        first, bias, second = np.split(theta[:, :-1], np.array([self.inputs, self.inputs + 1]) * self.hidden, axis=1)
        first = first.reshape(-1, self.hidden, self.inputs)
        return second, np.tanh(first @ x.T + bias[:, :, None])

    def outputs(self, theta, x):
        """[C, d], [N, inputs] -> [C, N]."""
        second, units = self.layers(theta, x)
        return (second[:, None] @ units)[:, 0] + theta[:, -1:]

    def pullback(self, theta, x, sensitivity):
        """Gradient [C, d] of a sum whose derivative by the outputs is ``sensitivity`` [C, N]."""
        second, units = self.layers(theta, x)
        inner = second[:, :, None] * (1 - units**2) * sensitivity[:, None]
        parts = (inner @ x).reshape(len(theta), -1), inner.sum(axis=2), (units @ sensitivity[:, :, None])[..., 0]
        return np.concatenate([*parts, sensitivity.sum(axis=1, keepdims=True)], axis=1)


class BernoulliPosterior:
    """Log density, unnormalised by the evidence alone, and its gradient, of many parameters at once."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, np.asarray(x, np.float64), np.asarray(y, np.float64)

    def predict(self, theta, x):
        """Probability of one, [C, N]."""
        return sigmoid(self.model.outputs(theta, x))

    def log_density(self, theta):
        """[C, d] -> [C]."""
        log_prior = -0.5 * np.sum(theta**2, axis=1) - 0.5 * self.model.size * np.log(2 * np.pi)
        return log_prior + log_bernoulli(self.y, self.model.outputs(theta, self.x)).sum(axis=1)

    def grad(self, theta):
        """[C, d] -> [C, d]."""
        sensitivity = self.y - self.predict(theta, self.x)
        return self.model.pullback(theta, self.x, sensitivity) - theta


def hmc(posterior, functional, num_chains, num_samples, step_size, num_steps, seed=0):
    """Means of ``functional(theta)`` [C, k] over the second half of chains that start at draws from the prior.

    The lengths of trajectories vary by half around ``step_size * num_steps``, so that none is periodic.
    """
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(num_chains, posterior.model.size))
    density, total = posterior.log_density(theta), 0.0
    for sample in range(2 * num_samples):
        momentum = rng.normal(size=theta.shape)
        energy = density - 0.5 * np.sum(momentum**2, axis=1)
        step = step_size * rng.uniform(0.5, 1.5)
        proposal = theta
        momentum = momentum + 0.5 * step * posterior.grad(proposal)
        for k in range(num_steps):
            proposal = proposal + step * momentum
            momentum = momentum + (step if k + 1 < num_steps else 0.5 * step) * posterior.grad(proposal)
        proposed = posterior.log_density(proposal)
        accept = np.log(rng.random(num_chains)) < proposed - 0.5 * np.sum(momentum**2, axis=1) - energy
        theta, density = np.where(accept[:, None], proposal, theta), np.where(accept, proposed, density)
        if sample >= num_samples:
            total = total + functional(theta)
    means = total / num_samples
    return Estimate(means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(num_chains))
