"""Prior, likelihood and network together: the log density of all particles at once, and its gradient.

log p(theta | x, y) = log p(theta) + scale * sum_i weight_i log p(y_i | x_i, theta) + constant
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends, ops, random
from fastsmc.densities import Scaled, read_tensor
from fastsmc.likelihoods import Likelihood, as_likelihood
from fastsmc.networks import Network
from fastsmc.priors import CoordinatePrior, Normal, Positive, Prior


class DensityAndGrad(NamedTuple):
    """Log density [P] in float64 and its gradient [P, d] in the particles' dtype."""

    log_density: Any
    grad: Any


class Posterior:
    """A Bayesian neural network: network, prior and likelihood.

    A particle holds the network's weights and, where the prior or the likelihood has a scale that is sampled, the
    logarithm of each such scale behind them; weights whose scale is sampled are in units of it. ``unpack`` undoes that.

    Parameters
    ----------
    network
        For instance ``MLP([784, 100, 10])``, or `from_torch` of any module.
    prior
        ``Normal(scale)``, ``Laplace(scale)``, ``StudentT(scale, df)``, or ``{pattern: prior}`` for the tensors whose
        names match, as in a shell: ``{"*.bias": Laplace(1.0), "*": Normal("fan_in")}``; the first that matches counts.
    likelihood
        ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, ``"poisson"``, ``Gaussian(noise=0.1)``, or a function of
        outputs [B, K] and y [B, ...], both tensors, that returns the log density of every sample, [B].
    precision
        ``"highest"``: float32 arithmetic. ``"high"``: products of operands that are each the sum of two bfloat16
        numbers. ``"medium"``: products of bfloat16 numbers. The names are torch's; sums are float32 always. Where the
        processor is no faster with the lower ones, they are computed at a higher one: see ``precision_in_use``.
    backend
        Forces one of ``backends.names()``; otherwise the best for the particles' device.
    """

    def __init__(
        self,
        network: Network,
        prior: Prior | Mapping[str, Prior] | None = None,
        likelihood: str | Likelihood | Callable[[Any, Any], Any] = "categorical",
        precision: str = "highest",
        backend: str | None = None,
    ) -> None:
        if precision not in ops.PRECISIONS:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(ops.PRECISIONS)}")
        self.network = network
        self.prior = Normal(1.0) if prior is None else prior
        self.likelihood = as_likelihood(likelihood)
        self.precision = precision
        self.backend = backend
        self.device = "cpu"
        noise = self.likelihood.noise if isinstance(self.likelihood.noise, Positive) else None
        self.coordinates = CoordinatePrior(network.parameters, self.prior, noise)
        self._density = network.density(self.likelihood.known, precision, backend)
        if self.coordinates.names:
            self._density = Scaled(self._density, self.coordinates.units, noise is not None)
        self._prior_precisions = {self.device: self.coordinates.precision}

    @property
    def num_params(self) -> int:
        """Length of a particle, d: the network's weights and the scales that are sampled with them."""
        return len(self.coordinates.scales)

    @property
    def prior_scales(self) -> np.ndarray:
        """Scale of the prior of every coordinate, float64 [d]."""
        return self.coordinates.scales

    @property
    def prior_precision(self) -> np.ndarray:
        """Mean of minus the second derivative of the log prior, float32 [d]: of a normal prior its precision."""
        return self.coordinates.curvature

    @property
    def path(self) -> str:
        """How the likelihood and its trajectories are computed, and why, in a few words."""
        rest = sorted({type(c.density).__name__ for c in self.coordinates.rest})
        by_steps = f"; trajectories step by step, for a prior that is {' and '.join(rest)}" if rest else ""
        return self._density.path + by_steps

    @property
    def precision_in_use(self) -> str:
        """The precision that products have here at least: the one that was asked for, or a higher one."""
        return self._density.precision_on(self.device)

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
            self._prior_precisions[device] = arrays.Device(device).put(self.coordinates.precision)
        return self._prior_precisions[device]

    def __repr__(self) -> str:
        return f"Posterior({self.network}, prior={self.prior}, likelihood={self.likelihood})"

    def sample_prior(self, num_particles: int, seed: int = 0, first_slot: int = 0) -> Any:
        """Particles drawn from the prior, float32 [P, d], on the posterior's device: a pure function of the seed.

        ``first_slot`` is the number of the first of them, of as many as there are for the seed.
        """
        shape, where = (num_particles, self.num_params), {"backend": self.backend, "device": self.device}
        key = {"seed": seed, "stream": random.Stream.PRIOR, "first_slot": first_slot}
        particles = random.normal(shape, **key, **where) * self.memory.put(self.prior_scales.astype(np.float32))
        if self.coordinates.rest:
            uniform = (random.uniform(shape, **key, iteration=k, **where) for k in (1, 2))
            tensors = (arrays.Device(self.device).read(array, "uniform")[0] for array in uniform)
            self.coordinates.draw_rest(self._tensor(particles), *tensors)
        return particles

    def log_prior_from_energy(self, energy: np.ndarray) -> np.ndarray:
        """Log prior density from the energy that trajectories return."""
        return self.coordinates.constant - energy

    def log_prior(self, particles: Any) -> Any:
        """Log prior density of every particle, with its constant: float64 [P]."""
        memory = backends.choose(self.backend, arrays.device(particles)).memory
        theta, back = self._read(particles, memory)
        row = memory.read(self._prior_precision_beside(particles), "precision")[0]
        return back(self.log_prior_from_energy(memory.energies(theta, row) + self._rest_energy(theta)))

    def prior_slope(self, particles: Any) -> Any:
        """Gradient of the log prior density, [P, d], in the particles' dtype."""
        memory = backends.choose(self.backend, arrays.device(particles)).memory
        theta, back = self._read(particles, memory)
        slope = -memory.read(self._prior_precision_beside(particles), "precision")[0] * theta
        if self.coordinates.rest:
            self.coordinates.add_rest_slope(self._tensor(theta), self._tensor(slope))
        return back(slope)

    def _read(self, particles: Any, memory: arrays.Memory) -> tuple[arrays.View, arrays.Back]:
        theta, back = memory.read_floats(particles, "particles")
        if theta.ndim != 2 or theta.shape[1] != self.num_params or len(theta) == 0:
            raise ValueError(
                f"particles has shape {tuple(theta.shape)}; this posterior needs [P, {self.num_params}] with P >= 1"
            )
        return theta, back

    def _tensor(self, particles: Any) -> Any:
        return read_tensor(particles, self.num_params)[0]

    def _rest_energy(self, particles: Any) -> Any:
        """Of the coordinates whose prior is not normal, [P]; 0 where there are none."""
        if not self.coordinates.rest:
            return 0.0
        theta, back = read_tensor(particles, self.num_params)
        return back(self.coordinates.rest_energy(theta))

    def unpack(self, particles: Any) -> dict[str, Any]:
        """The network's weights by torch's names, ``{name: [P, *shape]}``, then the scales that are sampled, [P].

        They are views where no scale is sampled.
        """
        if not isinstance(self._density, Scaled):
            return self.network.unpack(particles)
        theta, back = read_tensor(particles, self.num_params)
        parts = self.network.unpack(self._density.weights(theta))
        scales = theta[:, self.network.num_params :].exp()
        parts |= {name: scales[:, k] for k, name in enumerate(self.coordinates.names)}
        return {name: back(part) for name, part in parts.items()}

    def log_likelihood(self, particles: Any, x: Any, y: Any, *, weights: Any = None, check: bool = True) -> Any:
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
        check
            Whether to look at the values of y and weights; on a CUDA device that waits for it.

        Returns
        -------
        float64 [P]
        """
        return self._density.evaluate(particles, x, y, weights, with_grad=False, check=check)[0]

    def log_likelihood_and_grad(
        self, particles: Any, x: Any, y: Any, *, weights: Any = None, check: bool = True
    ) -> DensityAndGrad:
        """Log-likelihood [P] in float64 and its gradient [P, d]; arguments as for ``log_likelihood``."""
        return DensityAndGrad(*self._density.evaluate(particles, x, y, weights, check=check))

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
            ``weights``, ``scale``, ``likelihood_scale``, ``refresh``, ``check`` and what names the random numbers, as
            `ops.trajectory` takes them.
        """
        plan |= {"step_size": step_size, "num_steps": num_steps}
        if self._density.whole_trajectories and not self.coordinates.rest:
            plan["prior_precision"] = self._prior_precision_beside(particles)
            return self._density.trajectory(particles, momentum, grad, x, y, **plan)
        weights, check = plan.pop("weights", None), plan.get("check", True)

        def gradient(theta: Any) -> DensityAndGrad:
            return self.log_likelihood_and_grad(theta, x, y, weights=weights, check=check)

        return self.trajectory_by(gradient, particles, momentum, grad, **plan)

    def trajectory_by(
        self,
        gradient: Callable[[Any], DensityAndGrad],
        particles: Any,
        momentum: Any,
        grad: Any,
        *,
        step_size: float,
        num_steps: int,
        scale: Any = None,
        likelihood_scale: float = 1.0,
        refresh: float | None = None,
        check: bool = True,
        **key: Any,
    ) -> ops.Trajectory:
        """The same, step by step, with any function that returns log-likelihoods and their gradients."""
        shared = {"scale": scale, "likelihood_scale": likelihood_scale, "check": check}
        kick, drift = step_size / 2, step_size
        start = self.leapfrog(particles, momentum, grad, kick=kick, drift=drift, refresh=refresh, **shared, **key)
        for left in reversed(range(num_steps)):
            log_likelihood, grad[...] = gradient(particles)
            kick, drift = (step_size, step_size) if left else (step_size / 2, 0.0)
            end = self.leapfrog(particles, momentum, grad, kick=kick, drift=drift, **shared)
        energy = end.prior_energy + self._rest_energy(particles)
        return ops.Trajectory(log_likelihood, start.kinetic_before, end.kinetic_after, energy)

    def leapfrog(
        self, particles: Any, momentum: Any, grad: Any, *, kick: float, likelihood_scale: float = 1.0, **plan: Any
    ) -> ops.LeapfrogEnergies:
        """Refresh the momentum, kick and drift, in place, under this prior: see `ops.leapfrog`.

        ``prior_energy`` is that of the coordinates whose prior is normal.
        """
        if self.coordinates.rest and kick:
            slope, back = read_tensor(grad, self.num_params)
            slope = likelihood_scale * slope
            self.coordinates.add_rest_slope(self._tensor(particles), slope)
            grad, likelihood_scale = back(slope), 1.0
        plan |= {"kick": kick, "likelihood_scale": likelihood_scale, "backend": self.backend}
        return ops.leapfrog(particles, momentum, grad, precision=self._prior_precision_beside(particles), **plan)

    def log_density_and_grad(
        self, particles: Any, x: Any, y: Any, likelihood_scale: float = 1.0, *, weights: Any = None
    ) -> DensityAndGrad:
        """Log prior plus ``likelihood_scale`` times the log-likelihood, and the gradient of that sum."""
        memory = backends.choose(self.backend, arrays.device(particles)).memory
        theta, back = self._read(particles, memory)
        log_likelihood, grad = self.log_likelihood_and_grad(theta, x, y, weights=weights)
        log_density = self.log_prior(theta) + likelihood_scale * log_likelihood
        grad *= likelihood_scale
        grad += self.prior_slope(theta)
        return DensityAndGrad(back(log_density), back(grad))

    def pointwise(self, particles: Any, x: Any, y: Any) -> Any:
        """Log-likelihood of every sample under every particle, float64 [P, B]; arguments as for ``log_likelihood``."""
        return self._density.pointwise(particles, x, y)

    def outputs(self, particles: Any, x: Any) -> Any:
        """Network outputs of every particle (logits, means, log rates), [P, B, outputs]."""
        return self._density.outputs(particles, x)
