"""Log-likelihoods, gradients and outputs of networks; `fastsmc.ops` says what all ops share."""

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network
from fastsmc.ops.checks import bad_value, check_float32, check_range

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
    backend
        See the module.

    Returns
    -------
    log_likelihood : float64 array [P]
    """
    return _likelihood(network, likelihood, particles, x, y, weights, False, precision, backend)[0]


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
) -> tuple[Array, Array]:
    """Log-likelihood [P] and its gradient [P, d], in the type of the particles; arguments as for `log_likelihood`."""
    return _likelihood(network, likelihood, particles, x, y, weights, True, precision, backend)


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
) -> tuple[Array, Array]:
    engine = backends.choose(backend)
    host, back = read_particles(particles, network, engine)
    batch = read_batch(x, y, weights, network, likelihood, host.dtype)
    total, grad = np.empty(len(host)), np.empty_like(host) if with_grad else None
    status = engine.log_likelihood(
        network.layer_table,
        likelihood.code,
        likelihood.noise,
        precision_code(precision),
        host,
        *batch,
        total,
        grad,
    )
    if status:
        raise bad_value(status, network.num_outputs, y=batch.targets)
    return back(total), None if grad is None else back(grad)


def network_outputs(
    network: Network, particles: Array, x: Array, *, precision: str = "highest", backend: str | None = None
) -> Array:
    """Outputs of every particle's network for every row of x: [P, B, outputs], in the type of the particles."""
    engine = backends.choose(backend)
    host, back = read_particles(particles, network, engine)
    inputs = _read_inputs(x, network, host.dtype)
    outputs = np.empty((len(host), len(inputs), network.num_outputs), host.dtype)
    engine.network_outputs(network.layer_table, precision_code(precision), host, inputs, outputs)
    return back(outputs)


def precision_in_use(network: Network, precision: str, *, backend: str | None = None) -> str:
    """The precision in which an engine computes a network here when it is asked for one: never a lower one."""
    return PRECISIONS[backends.choose(backend).precision_in_use(network.layer_table, precision_code(precision))]


def read_particles(
    particles: Array, network: Network, engine: ModuleType | None = None
) -> tuple[np.ndarray, arrays.Back]:
    """View particles [P, d] of a network on the host."""
    host, back = arrays.read_floats(particles, "particles")
    if host.ndim != 2 or host.shape[1] != network.num_params or len(host) == 0:
        raise ValueError(f"particles has shape {host.shape}; this network needs [P, {network.num_params}] with P >= 1")
    if engine is not None:
        check_float32(engine, host)
    return host, back


def _read_numbers(array: Array, name: str) -> np.ndarray:
    numbers, _ = arrays.read(array, name)
    if numbers.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {numbers.dtype}; it must hold real numbers")
    return numbers


def _read_inputs(x: Array, network: Network, dtype: np.dtype) -> np.ndarray:
    inputs = _read_numbers(x, "x")
    if inputs.ndim < 2 or len(inputs) == 0 or math.prod(inputs.shape[1:]) != network.num_inputs:
        raise ValueError(f"x has shape {inputs.shape}; this network needs [B, {network.num_inputs}] with B >= 1")
    return np.ascontiguousarray(inputs.reshape(len(inputs), -1), dtype)


def _read_weights(weights: Array, samples: int, dtype: np.dtype) -> np.ndarray:
    numbers = _read_numbers(weights, "weights")
    if numbers.shape != (samples,):
        raise ValueError(f"weights has shape {numbers.shape}; there must be one for each sample, {(samples,)}")
    factors = numbers.astype(dtype, copy=False)
    check_range("weights", factors, (factors >= 0) & (factors < np.inf), "non-negative and finite")
    return factors


class Batch(NamedTuple):
    """A batch as engines take it: x [B, inputs], targets of the likelihood, weights [B] or None."""

    x: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None


def read_batch(
    x: Array, y: Array, weights: Array | None, network: Network, likelihood: Likelihood, dtype: np.dtype
) -> Batch:
    """View a batch on the host."""
    inputs = _read_inputs(x, network, dtype)
    targets = likelihood.targets(arrays.read(y, "y")[0], network.num_outputs)
    if len(targets) != len(inputs):
        raise ValueError(f"y has {len(targets)} rows, but x has {len(inputs)}; they must agree")
    return Batch(inputs, targets, None if weights is None else _read_weights(weights, len(inputs), dtype))


def precision_code(precision: str) -> int:
    """Return the number by which the engines know a precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(map(repr, PRECISIONS))}")
    return PRECISIONS.index(precision)
