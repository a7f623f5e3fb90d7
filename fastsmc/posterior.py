"""Prior, likelihood and network together: the log density of all particles at once, and its gradient.

log p(theta | x, y) = log p(theta) + scale * sum_i weight_i log p(y_i | x_i, theta) + constant
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends, ops, random
from fastsmc.likelihoods import Likelihood, as_likelihood
from fastsmc.networks import Network

LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Normal:
    """Independent normal prior with mean zero on every weight and bias.

    Parameters
    ----------
    scale
        The standard deviation, or ``"fan_in"``: 1 / sqrt(fan-in) of the layer, for its weights and its bias alike
        (the scale of torch's initialisation; Neal, 1996, for the limit of wide layers).
    """

    scale: float | str = 1.0

    def __post_init__(self) -> None:
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not (self.scale == "fan_in" or (number and math.isfinite(self.scale) and self.scale > 0)):
            raise ValueError(f"scale is {self.scale!r}; it must be a positive number or 'fan_in'")

    def scales(self, network: Network) -> np.ndarray:
        """Standard deviation of every weight of a particle, float64 [d]."""
        scales = np.empty(network.num_params)
        for p in network.parameters:
            scales[p.begin : p.end] = p.fan_in**-0.5 if self.scale == "fan_in" else self.scale
        return scales


class DensityAndGrad(NamedTuple):
    """Log density [P] in float64 and its gradient [P, d] in the particles' dtype."""

    log_density: Any
    grad: Any


class Posterior:
    """A Bayesian neural network: network, prior and likelihood.

    Parameters
    ----------
    network
        For instance ``MLP([784, 100, 10])``.
    prior
        ``Normal(scale)``.
    likelihood
        ``"categorical"``, ``"bernoulli"``, ``"gaussian"`` or ``Gaussian(noise=0.1)``.
    precision
        ``"highest"``: float32 arithmetic. ``"high"``: products of operands that are each the sum of two bfloat16
        numbers. ``"medium"``: products of bfloat16 numbers. The names are torch's; sums are float32 always. Where the
        processor has no instructions for the lower ones, they are computed at a higher one: see ``precision_in_use``.
    backend
        Forces one of ``backends.names()``; otherwise the best for the particles' device.
    """

    def __init__(
        self,
        network: Network,
        prior: Normal | None = None,
        likelihood: str | Likelihood = "categorical",
        precision: str = "highest",
        backend: str | None = None,
    ) -> None:
        if precision not in ops.PRECISIONS:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(ops.PRECISIONS)}")
        self.network = network
        self.prior = Normal(1.0) if prior is None else prior
        if not isinstance(self.prior, Normal):
            raise TypeError(f"prior is {prior!r}; this version knows Normal(scale)")
        self.likelihood = as_likelihood(likelihood)
        self.precision = precision
        self.backend = backend
        self.device = "cpu"
        self._engine = {"precision": precision, "backend": backend}
        self.prior_scales = self.prior.scales(network)
        self.prior_precision = (self.prior_scales**-2).astype(np.float32)
        self._prior_precisions = {self.device: self.prior_precision}
        self._log_prior_constant = -float(np.log(self.prior_scales).sum()) - 0.5 * network.num_params * LOG_TWO_PI

    @property
    def precision_in_use(self) -> str:
        """The precision of the products here: the one that was asked for, or a higher one."""
        return ops.precision_in_use(self.network, self.precision, backend=self.backend, device=self.device)

    def on(self, backend: str | None = None, device: str = "cpu") -> Posterior:
        """The same posterior, computed by another engine, whose draws of the prior are on a device."""
        if (backend or self.backend, device) == (self.backend, self.device):
            return self
        moved = Posterior(self.network, self.prior, self.likelihood, self.precision, backend or self.backend)
        moved.device = device
        return moved

    @property
    def memory(self) -> arrays.Memory:
        """That of the engine on the posterior's device."""
        return backends.choose(self.backend, self.device).memory

    @property
    def host_backend(self) -> str | None:
        """The engine for what there is one of for each particle, which is on the host."""
        return self.backend if self.memory is arrays.HOST else "cpu"

    def _prior_precision_beside(self, particles: Any) -> Any:
        device = arrays.device(particles)
        if device not in self._prior_precisions:
            self._prior_precisions[device] = arrays.Device(device).put(self.prior_precision)
        return self._prior_precisions[device]

    def __repr__(self) -> str:
        return f"Posterior({self.network}, prior={self.prior}, likelihood={self.likelihood})"

    def sample_prior(self, num_particles: int, seed: int = 0) -> Any:
        """Particles drawn from the prior, float32 [P, d], on the posterior's device; a pure function of the seed."""
        shape, where = (num_particles, self.network.num_params), {"backend": self.backend, "device": self.device}
        noise = random.normal(shape, seed=seed, stream=random.Stream.PRIOR, **where)
        return noise * self.memory.put(self.prior_scales.astype(np.float32))

    def log_prior_from_energy(self, energy: np.ndarray) -> np.ndarray:
        """Log prior density from ``sum(precision * theta**2) / 2``, which the leapfrog pass returns."""
        return self._log_prior_constant - energy

    def log_prior(self, particles: Any) -> Any:
        """Log prior density of every particle, with its constant: float64 [P]."""
        engine = backends.choose(self.backend, arrays.device(particles))
        theta, back = ops.read_particles(particles, self.network, engine)
        row = engine.memory.read(self._prior_precision_beside(particles), "precision")[0]
        return back(self.log_prior_from_energy(engine.memory.energies(theta, row)))

    def log_likelihood(self, particles: Any, x: Any, y: Any, *, weights: Any = None) -> Any:
        """Log-likelihood of every particle, summed over the batch.

        Parameters
        ----------
        particles
            [P, d], float32 (float64 with ``backend="reference"``).
        x
            [B, inputs], float32; other real dtypes are converted, which copies.
        y
            Integer [B] for the categorical likelihood, otherwise numbers [B] or [B, outputs].
        weights
            [B], non-negative: the factor of each sample's log-likelihood; one if not given.

        Returns
        -------
        float64 [P]
        """
        return ops.log_likelihood(self.network, self.likelihood, particles, x, y, weights=weights, **self._engine)

    def log_likelihood_and_grad(self, particles: Any, x: Any, y: Any, *, weights: Any = None) -> DensityAndGrad:
        """Log-likelihood [P] in float64 and its gradient [P, d]; arguments as for ``log_likelihood``."""
        how = {"weights": weights, **self._engine}
        return DensityAndGrad(*ops.log_likelihood_and_grad(self.network, self.likelihood, particles, x, y, **how))

    def trajectory(
        self, particles: Any, momentum: Any, grad: Any, x: Any, y: Any, *, step_size: float, num_steps: int, **plan: Any
    ) -> ops.Trajectory:
        """Leapfrog steps of all particles under this posterior, in place: see `ops.trajectory`.

        Parameters
        ----------
        particles, momentum, grad
            Float32 [P, d]: positions, momenta and the gradient of the log-likelihood; overwritten.
        x, y
            As for ``log_likelihood``.
        step_size, num_steps
            Length and number of the steps.
        plan
            ``weights``, ``scale``, ``likelihood_scale``, ``refresh`` and what names the random numbers, as
            `ops.trajectory` takes them.
        """
        return ops.trajectory(
            self.network,
            self.likelihood,
            particles,
            momentum,
            grad,
            x,
            y,
            prior_precision=self._prior_precision_beside(particles),
            step_size=step_size,
            num_steps=num_steps,
            **plan,
            **self._engine,
        )

    def leapfrog(self, particles: Any, momentum: Any, grad: Any, **plan: Any) -> ops.LeapfrogEnergies:
        """Refresh the momentum, kick and drift, in place, under this prior: see `ops.leapfrog`."""
        precision = self._prior_precision_beside(particles)
        return ops.leapfrog(particles, momentum, grad, precision=precision, backend=self.backend, **plan)

    def log_density_and_grad(
        self, particles: Any, x: Any, y: Any, likelihood_scale: float = 1.0, *, weights: Any = None
    ) -> DensityAndGrad:
        """Log prior plus ``likelihood_scale`` times the log-likelihood, and the gradient of that sum."""
        engine, memory = backends.choose(self.backend, arrays.device(particles))
        theta, back = ops.read_particles(particles, self.network, (engine, memory))
        log_likelihood, grad = self.log_likelihood_and_grad(theta, x, y, weights=weights)
        log_density = self.log_prior(theta) + likelihood_scale * log_likelihood
        grad *= likelihood_scale
        grad -= memory.read(self._prior_precision_beside(particles), "precision")[0] * theta
        return DensityAndGrad(back(log_density), back(grad))

    def outputs(self, particles: Any, x: Any) -> Any:
        """Network outputs of every particle (logits or means), [P, B, outputs]."""
        return ops.network_outputs(self.network, particles, x, **self._engine)
