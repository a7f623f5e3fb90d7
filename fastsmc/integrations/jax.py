"""The engines inside of jax.jit, jax.vmap and jax.grad, as custom calls of XLA (jax.ffi).

An op under ``jax.vmap`` is one call for all elements: what is not mapped over stays as it is, so that a vmapped sampler
evaluates all its particles at once on data that are not replicated. Arrays are float32 or float64; networks are
computed in float32. What the CPU engine refuses, such as weights that are NaN, is raised by XLA when the result is
waited for. On a GPU the calls are those of the engine of CUDA C++, on the stream of the computation, where the package
has it: what that refuses becomes NaN, and ancestors -1; networks that a block has no room for are an error, and
`trajectory` is the CPU's alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsmc.integrations import in_kernels
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network
from fastsmc.ops import SCHEMES, NormalizedWeights
from fastsmc.ops.checks import leading_shape, read_count
from fastsmc.ops.densities import precision_code

try:
    from fastsmc import _jax
except ImportError as error:
    raise ImportError(
        "this package was built without its JAX module; install jax first, then fastsmc with --no-build-isolation"
    ) from error

_targets = {"cpu": _jax.targets()}
with suppress(ImportError):  # a package without the CUDA engine
    from fastsmc import _jax_cuda

    if _jax_cuda.device() == "cuda":
        _targets["CUDA"] = _jax_cuda.targets()
for _platform, _calls in _targets.items():
    for _name, _target in _calls.items():
        jax.ffi.register_ffi_target(_name, _target, platform=_platform)

Array = Any


def normalize_log_weights(log_weights: Array) -> NormalizedWeights:
    """As `fastsmc.normalize_log_weights`, of log weights [..., P]."""
    log_weights = _floats(log_weights, "log_weights")
    lead, dtype = leading_shape(log_weights, "log_weights"), log_weights.dtype
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in (log_weights.shape, lead, lead)]
    return NormalizedWeights(*_call("normalize_log_weights", results)(log_weights))


def resample(
    weights: Array, u: Array, scheme: str = "systematic", log: bool = True, num_samples: int | None = None
) -> Array:
    """Ancestors [..., M] of log weights [..., P], or of weights where ``log`` is False: see `fastsmc.resample`.

    Parameters
    ----------
    weights : array [..., P]
    u : array [...] for ``"systematic"``, else [..., M]
        Uniform numbers in [0, 1).
    scheme : {"systematic", "stratified", "multinomial", "residual"}
    num_samples
        M, as many as there are particles if not given.

    Returns
    -------
    ancestors : array [..., M]
        Of the integer type that JAX has by default; as integers, they have no derivative.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {', '.join(map(repr, SCHEMES))}")
    weights, u = _floats(weights, "weights"), _floats(u, "u")
    lead = leading_shape(weights, "weights")
    samples = weights.shape[-1] if num_samples is None else read_count(num_samples, "num_samples")
    expected = (*lead, samples) if SCHEMES[scheme] else lead
    if u.shape != expected:
        raise ValueError(f"u has shape {u.shape}; with weights of shape {weights.shape} it must have {expected}")
    result = jax.ShapeDtypeStruct((*lead, samples), jax.dtypes.canonicalize_dtype(np.int64))
    call = _call("resample", result)
    return call(jax.lax.stop_gradient(weights), u, scheme=np.int64(list(SCHEMES).index(scheme)), log=np.int64(log))


systematic, stratified, multinomial, residual = (partial(resample, scheme=scheme, log=False) for scheme in SCHEMES)


def log_likelihood(
    network: Network,
    x: Array,
    y: Array,
    likelihood: str | Likelihood = "categorical",
    precision: str = "highest",
    remember: bool = False,
) -> Callable[[Array], Array]:
    """The log-likelihood of a batch as a function of one particle [d], to be mapped and differentiated by JAX.

    A gradient costs one call, which computes the value too; second derivatives and forward mode are not to be had.

    Parameters
    ----------
    network, likelihood, precision
        As for `fastsmc.Posterior`, of those that the kernels compute.
    x : array [B, inputs] or [B, ...]
    y : array [B] or [B, outputs]
        As the likelihood takes it.
    remember
        On a CPU, find what was computed before by the bits of the particles, for samplers that ask more than once for
        the same: those of the latest call, and of the latest that asked for some again. It takes the memory of two
        gradients for each particle, until `forget`.
    """
    data, constant, settings = _constants(network, x, y, likelihood, precision, remember)

    def checked(particle: Array) -> Array:
        particle = _floats(particle, "particle")
        if particle.shape != (network.num_params,):
            raise ValueError(f"particle has shape {particle.shape}; this network needs ({network.num_params},)")
        return particle

    @jax.custom_vjp
    def value(particle: Array) -> Array:
        particle = checked(particle)
        call = _call("log_likelihood", jax.ShapeDtypeStruct((), particle.dtype))
        return constant + call(particle, *data, **settings)

    def forward(particle: Array) -> tuple[Array, Array]:
        particle = checked(particle)
        results = [jax.ShapeDtypeStruct(shape, particle.dtype) for shape in ((), particle.shape)]
        total, grad = _call("log_likelihood_and_grad", results)(particle, *data, **settings)
        return constant + total, grad

    def backward(grad: Array, cotangent: Array) -> tuple[Array]:
        return (cotangent * grad,)

    value.defvjp(forward, backward)
    return value


def forget() -> None:
    """Free what `log_likelihood` and `trajectory` have remembered."""
    _jax.forget()


class Trajectory(NamedTuple):
    """Where a trajectory ends, [P, d], and what is known there of every particle, [P]; all float32.

    ``prior_energy`` is ``sum(prior_precision * theta^2) / 2``, and ``kinetic_gain`` the kinetic energy at the end less
    that at the start, ``v.v / 2`` each.
    """

    particles: Array
    momentum: Array
    grad: Array
    log_likelihood: Array
    prior_energy: Array
    kinetic_gain: Array


def trajectory(
    network: Network,
    x: Array,
    y: Array,
    num_steps: int,
    likelihood: str | Likelihood = "categorical",
    precision: str = "highest",
    remember: bool = False,
) -> Callable[..., Trajectory]:
    """Leapfrog steps of all particles in one call: see `fastsmc.ops.trajectory`.

    The function that is returned takes, in float32, particles, momentum and the gradient of the log-likelihood [P, d],
    prior_precision and scale, [d] or a number for all, and the numbers step_size and likelihood_scale. It is for whole
    populations: neither mapped nor differentiated.

    Parameters
    ----------
    network, x, y, likelihood, precision
        As for `log_likelihood`.
    num_steps
        Of the trajectory, at least 1.
    remember
        Where it ends, for `log_likelihood` to find.
    """
    data, constant, settings = _constants(network, x, y, likelihood, precision, remember)
    settings["steps"] = np.int64(read_count(num_steps, "num_steps"))

    def run(
        particles: Array,
        momentum: Array,
        grad: Array,
        prior_precision: Array,
        scale: Array,
        step_size: Array,
        likelihood_scale: Array,
    ) -> Trajectory:
        shape, each = jnp.shape(particles), (network.num_params,)
        if len(shape) != 2 or shape[1:] != each or shape[0] == 0:
            raise ValueError(f"particles has shape {shape}; this network needs [P, {network.num_params}] with P >= 1")
        states = {"particles": particles, "momentum": momentum, "grad": grad}
        rows = {"prior_precision": prior_precision, "scale": scale}
        numbers = {"step_size": step_size, "likelihood_scale": likelihood_scale}
        operands = (
            *(_shaped(array, name, shape) for name, array in states.items()),
            *data,
            *(jnp.broadcast_to(_shaped(row, name, each, ()), each) for name, row in rows.items()),
            *(_shaped(number, name, ()) for name, number in numbers.items()),
        )
        state, of_each = (jax.ShapeDtypeStruct(size, jnp.float32) for size in (shape, shape[:1]))
        in_place = {k: k for k in range(3)}
        call = jax.ffi.ffi_call("fastsmc_trajectory", [state] * 3 + [of_each] * 3, input_output_aliases=in_place)
        end = Trajectory(*call(*operands, **settings))
        return end._replace(log_likelihood=constant + end.log_likelihood)

    return run


def _constants(
    network: Network, x: Array, y: Array, likelihood: str | Likelihood, precision: str, remember: bool
) -> tuple[tuple[Array, Array], float, dict[str, Any]]:
    """A batch as operands, what the engine leaves out of its likelihood, and what it is told of the network."""
    density = in_kernels(network, likelihood, precision)
    inputs = np.asarray(x, np.float32).reshape(len(x), -1)
    targets = density.targets(np.asarray(y), network.num_outputs)
    if inputs.shape[1] != network.num_inputs or len(inputs) != len(targets):
        raise ValueError(
            f"x has shape {np.shape(x)} and y {np.shape(y)}; this network needs [B, {network.num_inputs}] and B targets"
        )
    settings = {
        "layers": network.layer_table.ravel(),
        "likelihood": np.int64(density.code),
        "noise": np.float64(density.noise),
        "precision": np.int64(precision_code(precision)),
    }
    settings["density"] = _digest(inputs, targets, *settings.values()) if remember else np.int64(0)
    data = jax.block_until_ready((jnp.asarray(inputs), jnp.asarray(targets)))  # for x may be written to later
    return data, float(density.constant(targets, None)), settings


def _digest(*arrays: Any) -> np.int64:
    """A number for what they hold, and never 0."""
    digest = hashlib.blake2b(digest_size=8)
    for array in map(np.asarray, arrays):
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.int64)[0] or np.int64(1)


def _call(name: str, results: Any) -> Callable[..., Any]:
    return jax.ffi.ffi_call(f"fastsmc_{name}", results, vmap_method="expand_dims")


def _shaped(array: Array, name: str, *shapes: tuple[int, ...]) -> Array:
    array = jnp.asarray(array, jnp.float32)
    if array.shape not in shapes:
        raise ValueError(f"{name} has shape {array.shape}; it must have {' or '.join(map(str, shapes))}")
    return array


def _floats(array: Array, name: str) -> Array:
    array = jnp.asarray(array)
    if array.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; it must be float32 or float64")
    return array
