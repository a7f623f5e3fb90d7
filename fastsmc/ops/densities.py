"""Log-likelihoods, gradients and outputs of networks; `fastsmc.ops` says what all ops share."""

import math
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends
from fastsmc.arrays import Memory, View
from fastsmc.backends import Engine
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network
from fastsmc.ops.checks import check_float32, check_range, refuse

Array = Any

PRECISIONS = ("highest", "high", "medium")
"""Float32 throughout; each operand the sum of two bfloat16 numbers; bfloat16 operands. Sums are float32 always."""


def log_likelihood(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    x: Array,
    y: Array,
    *,
    weights: Array | None = None,
    precision: str = "highest",
    backend: str | None = None,
    check: bool = True,
) -> Array:
    """Log-likelihood of every particle of a network, summed over a batch that all share.

    Parameters
    ----------
    network, likelihood
        What the particles are weights of, and the density of y given its outputs.
    particles : array_like [P, d]
        Float32; the reference takes float64 too.
    x : array_like [B, inputs] or [B, ...]
        Converted to the type of the particles if it has another.
    y : array_like [B] or [B, outputs]
        As the likelihood takes it.
    weights : array_like [B], optional
        Non-negative and finite; the factor of each sample's log-likelihood, one if not given. Converted as x is.
    precision : {"highest", "high", "medium"}
        What the products may lose (see `precision_in_use`).
    backend, check
        See the module.

    Returns
    -------
    log_likelihood : float64 array [P]
    """
    return _likelihood(network, likelihood, particles, x, y, weights, False, precision, backend, check)[0]


def log_likelihood_and_grad(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    x: Array,
    y: Array,
    *,
    weights: Array | None = None,
    precision: str = "highest",
    backend: str | None = None,
    check: bool = True,
) -> tuple[Array, Array]:
    """Log-likelihood [P] and its gradient [P, d], in the type of the particles; arguments as for `log_likelihood`."""
    return _likelihood(network, likelihood, particles, x, y, weights, True, precision, backend, check)


@arrays.on_its_stream
def _likelihood(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    x: Array,
    y: Array,
    weights: Array | None,
    with_grad: bool,
    precision: str,
    backend: str | None,
    check: bool,
) -> tuple[Array, Array]:
    engine, memory = backends.choose(backend, arrays.device(particles))
    theta, back = read_particles(particles, network, (engine, memory))
    dtype = memory.dtype(theta)
    batch = read_batch(x, y, weights, network, likelihood, memory, dtype, check)
    total = memory.empty((len(theta),), np.float64)
    grad = memory.empty(theta.shape, dtype) if with_grad else None
    status = engine.log_likelihood(
        network.layer_table,
        likelihood.code,
        likelihood.noise,
        precision_code(precision),
        theta,
        *batch,
        total,
        grad,
    )
    refuse(status, check, network.num_outputs, y=batch.targets)
    total += likelihood.constant(batch.targets, batch.weights)
    return back(total), None if grad is None else back(grad)


@arrays.on_its_stream
def network_outputs(
    network: Network, particles: Array, x: Array, *, precision: str = "highest", backend: str | None = None
) -> Array:
    """Outputs of every particle's network for every row of x: [P, B, outputs], in the type of the particles."""
    engine, memory = backends.choose(backend, arrays.device(particles))
    theta, back = read_particles(particles, network, (engine, memory))
    inputs = read_inputs(x, network, memory, memory.dtype(theta))
    outputs = memory.empty((len(theta), len(inputs), network.num_outputs), memory.dtype(theta))
    engine.network_outputs(network.layer_table, precision_code(precision), theta, inputs, outputs)
    return back(outputs)


def precision_in_use(network: Network, precision: str, *, backend: str | None = None, device: str = "cpu") -> str:
    """The precision in which an engine computes a network when it is asked for one: never a lower one."""
    engine = backends.choose(backend, device).ops
    return PRECISIONS[engine.precision_in_use(network.layer_table, precision_code(precision))]


def read_particles(particles: Array, network: Network, engine: Engine) -> tuple[View, arrays.Back]:
    """View particles [P, d] of a network."""
    ops, memory = engine
    theta, back = memory.read_floats(particles, "particles")
    if theta.ndim != 2 or theta.shape[1] != network.num_params or len(theta) == 0:
        raise ValueError(
            f"particles has shape {tuple(theta.shape)}; this network needs [P, {network.num_params}] with P >= 1"
        )
    check_float32(memory.dtype(theta), ops)
    return theta, back


def read_inputs(x: Array, network: Network, memory: Memory, dtype: np.dtype) -> View:
    """View a batch of samples as rows [B, inputs]."""
    inputs = memory.read_numbers(x, "x")
    if inputs.ndim < 2 or len(inputs) == 0 or math.prod(inputs.shape[1:]) != network.num_inputs:
        raise ValueError(f"x has shape {tuple(inputs.shape)}; this network needs [B, {network.num_inputs}] with B >= 1")
    return memory.cast(inputs.reshape(len(inputs), -1), dtype)


def _read_weights(weights: Array, samples: int, memory: Memory, dtype: np.dtype, check: bool) -> View:
    numbers = memory.read_numbers(weights, "weights")
    if tuple(numbers.shape) != (samples,):
        raise ValueError(f"weights has shape {tuple(numbers.shape)}; there must be one for each sample, {(samples,)}")
    factors = memory.cast(numbers, dtype)
    if check:
        check_range("weights", factors, (factors >= 0) & (factors < np.inf), "non-negative and finite")
    return factors


class Batch(NamedTuple):
    """A batch as engines take it: x [B, inputs], targets of the likelihood, weights [B] or None."""

    x: View
    targets: View
    weights: View | None


def read_batch(
    x: Array,
    y: Array,
    weights: Array | None,
    network: Network,
    likelihood: Likelihood,
    memory: Memory,
    dtype: np.dtype,
    check: bool = True,
) -> Batch:
    """View a batch."""
    inputs = read_inputs(x, network, memory, dtype)
    targets = likelihood.targets(memory.read(y, "y")[0], network.num_outputs, memory, check)
    if len(targets) != len(inputs):
        raise ValueError(f"y has {len(targets)} rows, but x has {len(inputs)}; they must agree")
    return Batch(
        inputs, targets, None if weights is None else _read_weights(weights, len(inputs), memory, dtype, check)
    )


def precision_code(precision: str) -> int:
    """Return the number by which the engines know a precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(map(repr, PRECISIONS))}")
    return PRECISIONS.index(precision)
