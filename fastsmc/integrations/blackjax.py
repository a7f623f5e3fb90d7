"""For blackjax: its resampling functions, the log-likelihood of a network, and fused moves, inside of jax.jit.

>>> likelihood = bnn_log_likelihood(net, x, y)
>>> blackjax.tempered_smc(log_prior, likelihood, hmc.build_kernel(), hmc.init, parameters, systematic, 5)

and the same with all particles moved at once:

>>> moves = fused_hmc(net, x, y, num_integration_steps=10)
>>> blackjax.tempered_smc(..., update_particles_fn=moves)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsmc.integrations import check_normal, in_kernels
from fastsmc.integrations.jax import log_likelihood, resample, trajectory
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network
from fastsmc.ops import SCHEMES
from fastsmc.priors import Normal

__all__ = ["bnn_log_likelihood", "data_annealing", "fused_hmc", "multinomial", "residual", "stratified", "systematic"]

Array = Any


def _as_blackjax(scheme: str) -> Callable[[Array, Array, int], Array]:
    def resampling(rng_key: Array, weights: Array, num_samples: int) -> Array:
        """Indices [num_samples] of particles, drawn by weights [N], or by a column of them, as pretuning has."""
        shape = (num_samples,) if SCHEMES[scheme] else ()
        u = jax.random.uniform(rng_key, shape, weights.dtype)
        return resample(weights.reshape(-1), u, scheme, log=False, num_samples=num_samples)

    resampling.__name__ = resampling.__qualname__ = scheme
    return resampling


systematic, stratified, multinomial, residual = map(_as_blackjax, SCHEMES)


def bnn_log_likelihood(
    network: Network,
    x: Array,
    y: Array,
    likelihood: str | Likelihood = "categorical",
    precision: str = "highest",
    remember: bool = True,
) -> Callable[[Array], Array]:
    """`fastsmc.integrations.jax.log_likelihood`, which here remembers.

    blackjax asks again for a particle where it weights it and where its next move starts.
    """
    return log_likelihood(network, x, y, likelihood, precision, remember)


class HMCInfo(NamedTuple):
    """Of every particle and move, [num_mcmc_steps, P], under blackjax's names."""

    acceptance_rate: Array
    is_accepted: Array


def fused_hmc(
    network: Network,
    x: Array,
    y: Array,
    num_integration_steps: int,
    prior: Normal | None = None,
    likelihood: str | Likelihood = "categorical",
    precision: str = "highest",
    resampling_fn: Callable[[Array, Array, int], Array] = systematic,
) -> Callable[..., Any]:
    """HMC moves of all particles by our trajectories: an ``update_particles_fn`` of tempered and adaptive tempered SMC.

    They have the invariant density and the parameters of blackjax's own HMC, not its random numbers:
    ``mcmc_parameters`` holds ``step_size`` and may hold ``inverse_mass_matrix`` [d], a diagonal, both shared by all
    particles, and ``num_integration_steps``, which must be that given here. What blackjax is given for a log prior must
    be the density of ``prior``, and its log-likelihood `bnn_log_likelihood` of the same arguments: it weights the
    particles with them.

    Parameters
    ----------
    network, x, y, likelihood, precision
        As for `bnn_log_likelihood`.
    num_integration_steps
        Leapfrog steps of a trajectory.
    prior
        ``Normal(1.0)`` unless given; of a known scale.
    resampling_fn
        As blackjax takes it.
    """
    from blackjax.smc import base

    prior = Normal() if prior is None else prior
    check_normal("prior is", prior)
    prior_precision = jnp.asarray(prior.scales(network) ** -2, jnp.float32)
    gradient = jax.vmap(jax.value_and_grad(bnn_log_likelihood(network, x, y, likelihood, precision)))
    run = trajectory(network, x, y, num_integration_steps, likelihood, precision, remember=True)

    def update(
        rng_key: Array,
        state: Any,
        num_mcmc_steps: int,
        mcmc_parameters: dict[str, Array],
        tempered_logposterior_fn: Callable[[Array], Array],
        log_weights_fn: Callable[[Array], Array],
    ) -> tuple[Any, Any]:
        shared = _shared(mcmc_parameters, network.num_params, num_integration_steps)
        scale = jnp.sqrt(shared.get("inverse_mass_matrix", jnp.ones(network.num_params)))
        how = (prior_precision, scale, shared["step_size"], state.tempering_param)

        def move(now: tuple[Array, ...], key: Array) -> tuple[tuple[Array, ...], HMCInfo]:
            particles, grad, log_likelihood, prior_energy = now
            of_momentum, of_choice = jax.random.split(key)
            momentum = jax.random.normal(of_momentum, particles.shape)
            end = run(particles, momentum, grad, *how)
            log_ratio = state.tempering_param * (end.log_likelihood - log_likelihood)
            log_ratio -= end.prior_energy - prior_energy + end.kinetic_gain
            rate = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0))
            accepted = jax.random.uniform(of_choice, rate.shape) < rate
            there = (end.particles, end.grad, end.log_likelihood, end.prior_energy)
            chosen = (
                jnp.where(accepted.reshape(-1, *[1] * (b.ndim - 1)), a, b) for a, b in zip(there, now, strict=True)
            )
            return tuple(chosen), HMCInfo(rate, accepted)

        def moves(keys: Array, particles: Array, _: Any) -> tuple[Array, HMCInfo]:
            log_likelihood, grad = gradient(particles)
            start = (particles, grad, log_likelihood, 0.5 * jnp.sum(prior_precision * particles**2, axis=1))
            end, info = jax.lax.scan(move, start, jax.random.split(keys[0], num_mcmc_steps))
            return end[0], info

        resampled = base.SMCState(state.particles, state.weights, {})
        return base.step(rng_key, resampled, moves, jax.vmap(log_weights_fn), resampling_fn)

    return update


def _shared(parameters: dict[str, Array], num_params: int, num_steps: int) -> dict[str, Array]:
    """What all particles move by, of blackjax's parameters, [1, ...]."""
    shapes = {"step_size": (1,), "inverse_mass_matrix": (1, num_params), "num_integration_steps": (1,)}
    for name, values in parameters.items():
        if name not in shapes:
            raise ValueError(f"mcmc_parameters has {name!r}; fused moves take {', '.join(map(repr, shapes))}")
        if values.shape != shapes[name]:
            raise ValueError(
                f"{name} has shape {values.shape}; fused moves need it shared by all particles, {shapes[name]}"
            )
    steps = parameters.get("num_integration_steps", num_steps)
    if not isinstance(steps, jax.core.Tracer) and (given := np.asarray(steps).item()) != num_steps:
        raise ValueError(f"num_integration_steps is {given} in mcmc_parameters; it must be {num_steps}, that of moves")
    return {name: values[0] for name, values in parameters.items()}


class DataAnnealedState(NamedTuple):
    """Weighted particles of the posterior of the first ``size`` data."""

    particles: Array
    weights: Array
    size: int


def data_annealing(
    log_prior_fn: Callable[[Array], Array],
    network: Network,
    x: Array,
    y: Array,
    mcmc_step_fn: Callable[..., Any],
    mcmc_init_fn: Callable[..., Any],
    mcmc_parameters: dict[str, Array],
    resampling_fn: Callable[[Array, Array, int], Array] = systematic,
    num_mcmc_steps: int = 10,
    likelihood: str | Likelihood = "categorical",
    precision: str = "highest",
) -> Any:
    """SMC over posteriors of more and more data, moved by any kernel of blackjax's: a ``SamplingAlgorithm``.

    ``step(rng_key, state, size)`` resamples, moves under the posterior of the data so far, and weights what is there by
    the likelihood of the data that join (Chopin, "A sequential particle filter method for static models", 2002); only
    the data of a posterior are evaluated. blackjax's own ``partial_posteriors_smc`` moves under the new posterior
    before it weights, which counts the data that join twice.

    Parameters
    ----------
    log_prior_fn
        Of one particle [d].
    network, x, y, likelihood, precision
        As for `bnn_log_likelihood`; the data in the order in which they are brought in.
    mcmc_step_fn, mcmc_init_fn, mcmc_parameters, resampling_fn, num_mcmc_steps
        As blackjax's samplers take them.

    Returns
    -------
    algorithm
        ``init(particles)`` and ``step(rng_key, state, size)``, which is compiled once for each pair of sizes and must
        not be compiled as a whole; its information has the increment of the log evidence.
    """
    from blackjax.base import SamplingAlgorithm
    from blackjax.smc import base, from_mcmc

    in_kernels(network, likelihood, precision)
    x, y = np.asarray(x), np.asarray(y)  # to be cut while jax.jit traces
    update = from_mcmc.build_kernel(mcmc_step_fn, mcmc_init_fn, resampling_fn)

    def likelihood_of(begin: int, end: int) -> Callable[[Array], Array]:
        if begin == end:
            return lambda particle: jnp.zeros((), particle.dtype)
        return log_likelihood(network, x[begin:end], y[begin:end], likelihood, precision)

    @partial(jax.jit, static_argnames=("before", "size"))
    def advance(rng_key: Array, particles: Array, weights: Array, before: int, size: int) -> tuple[Any, Any]:
        old = likelihood_of(0, before)
        state = base.SMCState(particles, weights, {})
        return update(
            rng_key,
            state,
            num_mcmc_steps,
            mcmc_parameters,
            lambda particle: log_prior_fn(particle) + old(particle),
            likelihood_of(before, size),
        )

    def init(position: Array, rng_key: Array | None = None) -> DataAnnealedState:
        return DataAnnealedState(position, jnp.full(len(position), 1 / len(position)), 0)

    def step(rng_key: Array, state: DataAnnealedState, size: int) -> tuple[DataAnnealedState, Any]:
        if not state.size <= size <= len(y):
            raise ValueError(f"size is {size}; it must lie between {state.size}, that of the state, and {len(y)}")
        moved, info = advance(rng_key, state.particles, state.weights, before=state.size, size=size)
        return DataAnnealedState(moved.particles, moved.weights, size), info

    return SamplingAlgorithm(init, step)


def replacements() -> dict[Callable[..., Array], Callable[..., Array]]:
    """What `accelerate` replaces: the resampling functions."""
    from blackjax.smc import resampling

    return {getattr(resampling, scheme): globals()[scheme] for scheme in SCHEMES}
