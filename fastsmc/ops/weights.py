"""Log weights, resampling and the copying of particles; `fastsmc.ops` says what all ops share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends
from fastsmc.ops.checks import leading_shape, read_count, refuse, refuse_overlap, shape_text

Array = Any

SCHEMES = {"systematic": False, "stratified": True, "multinomial": True, "residual": True}
"""The resampling schemes, and whether each sample has a uniform number of its own."""


class NormalizedWeights(NamedTuple):
    """What `normalize_log_weights` returns."""

    weights: Array
    log_sum: Array
    ess: Array


class Resampled(NamedTuple):
    """What `adaptive_resample` returns."""

    ancestors: Array
    offspring: Array
    log_weights: Array
    log_sum: Array
    ess: Array


@arrays.on_its_stream
def normalize_log_weights(log_weights: Array, *, backend: str | None = None, check: bool = True) -> NormalizedWeights:
    """Turn log weights into weights that sum to one.

    Parameters
    ----------
    log_weights : array_like [..., P]
        Float32 or float64. Entries of -inf get weight zero, and so do those whose weight would be subnormal: more than
        708 below the largest, or for float32 weights below 1.2e-38.
    backend, check
        See the module.

    Returns
    -------
    weights : array [..., P]
        Computed in float64 and rounded to the type of the log weights.
    log_sum : array [...]
        The logarithm of the sum of the exponentials.
    ess : array [...]
        The effective sample size, (sum of w)^2 / sum of w^2.
    """
    engine, memory = backends.choose(backend, arrays.device(log_weights))
    values, back = memory.read_floats(log_weights, "log_weights")
    lead, dtype = leading_shape(values, "log_weights"), memory.dtype(values)
    weights, log_sum, ess = memory.empty(values.shape, dtype), memory.empty(lead, dtype), memory.empty(lead, dtype)
    if (status := engine.normalize_log_weights(values, weights, log_sum, ess)) is not None:
        refuse(status, check, log_weights=values)
    return NormalizedWeights(back(weights), back(log_sum), back(ess))


def systematic(
    weights: Array,
    u: Array,
    num_samples: int | None = None,
    *,
    backend: str | None = None,
    check: bool = True,
) -> Array:
    """Draw ancestors at the teeth of one evenly spaced comb.

    Every offspring count is the floor or the ceiling of ``num_samples`` times the normalised weight.

    Parameters
    ----------
    weights : array_like [..., P]
        Non-negative, with any positive sum; float32 or float64.
    u : array_like [...]
        Uniform numbers in [0, 1), one for each row of weights; their first 53 bits are used.
    num_samples : int, optional
        M; as many as there are particles if not given.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., M]
        Sorted. The arithmetic is exact: the same on every backend.
    """
    return _resample("systematic", False, weights, u, num_samples, backend, check)


def stratified(weights: Array, u: Array, *, backend: str | None = None, check: bool = True) -> Array:
    """Draw ancestors at one uniform position in each of M equal strata.

    Parameters
    ----------
    weights : array_like [..., P]
        As for `systematic`.
    u : array_like [..., M]
        Uniform numbers in [0, 1), one for each sample.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., M]
        Sorted.
    """
    return _resample("stratified", False, weights, u, None, backend, check)


def multinomial(weights: Array, u: Array, *, backend: str | None = None, check: bool = True) -> Array:
    """Draw ancestors independently of each other.

    Parameters
    ----------
    weights : array_like [..., P]
        As for `systematic`.
    u : array_like [..., M]
        Uniform numbers in [0, 1), one for each sample, in any order.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., M]
        Sorted, so not in the order of ``u``.
    """
    return _resample("multinomial", False, weights, u, None, backend, check)


def residual(
    weights: Array,
    u: Array,
    num_samples: int | None = None,
    *,
    backend: str | None = None,
    check: bool = True,
) -> Array:
    """Copy each particle floor(M w) times and draw the rest from what remains of the weights.

    Parameters
    ----------
    weights : array_like [..., P]
        As for `systematic`.
    u : array_like [..., M]
        Uniform numbers in [0, 1); the first R of a row serve its R samples that are drawn.
    num_samples : int, optional
        M; the length of the rows of ``u``, which it must equal if given.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., M]
        Sorted: copies and draws of one particle stand together.
    """
    return _resample("residual", False, weights, u, num_samples, backend, check)


def resample(
    log_weights: Array,
    u: Array,
    scheme: str = "systematic",
    log: bool = True,
    num_samples: int | None = None,
    *,
    backend: str | None = None,
    check: bool = True,
) -> Array:
    """Draw ancestors by a scheme that is named.

    Parameters
    ----------
    log_weights : array_like [..., P]
        Log weights, not normalised, or weights if ``log`` is False; float32 or float64.
    u : array_like
        Uniform numbers as the scheme takes them: [...] for systematic, [..., M] for the others.
    scheme : {"systematic", "stratified", "multinomial", "residual"}
        See the functions of these names.
    log : bool
        Whether the weights are logarithms.
    num_samples : int, optional
        M; if not given, as many as there are particles (systematic) or the length of the rows of ``u``.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., M]
        Sorted.
    """
    return _resample(scheme, log, log_weights, u, num_samples, backend, check)


@arrays.on_its_stream
def _resample(
    scheme: str, log: bool, weights: Array, u: Array, num_samples: int | None, backend: str | None, check: bool
) -> Array:
    name = "log_weights" if log else "weights"
    engine, memory = backends.choose(backend, arrays.device(weights))
    values, back = memory.read_floats(weights, name)
    lead = leading_shape(values, name)
    uniforms = memory.read_floats(float(u) if type(u) is int else u, "u")[0]
    samples = _samples(scheme, uniforms, lead, values.shape[-1], num_samples)
    ancestors = memory.empty((*lead, samples), np.int64)
    if (status := engine.resample(scheme, log, values, uniforms, ancestors)) is not None:
        refuse(status, check, u=uniforms, **{name: values})
    return back(ancestors)


def _samples(
    scheme: str, uniforms: arrays.View, lead: tuple[int, ...], num_particles: int, num_samples: int | None = None
) -> int:
    """How many samples a scheme draws by uniform numbers for rows of particles."""
    rows = tuple(uniforms.shape)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {', '.join(map(repr, SCHEMES))}")
    if not SCHEMES[scheme]:
        if rows != lead:
            raise ValueError(f"u has shape {rows}; {scheme} needs {lead}, one number for each row")
        return num_particles if num_samples is None else read_count(num_samples, "num_samples")
    samples = rows[-1] if rows else 0
    if rows[:-1] != lead or samples == 0:
        raise ValueError(f"u has shape {rows}; {scheme} needs {shape_text(*lead, 'M')} with M >= 1")
    if num_samples is not None and num_samples != samples:
        raise ValueError(f"num_samples is {num_samples}, but the rows of u have {samples} numbers")
    return samples


@arrays.on_its_stream
def adaptive_resample(
    log_weights: Array,
    u: Array,
    threshold: float = 0.5,
    scheme: str = "systematic",
    *,
    backend: str | None = None,
    check: bool = True,
) -> Resampled:
    """Resample where the effective sample size has become too small: a whole resampling step in one call.

    What `normalize_log_weights`, `resample`, `offspring` and `permute_ancestors` would say, and the decision between
    them, which stays on the device (Del Moral, Doucet and Jasra, "On adaptive resampling strategies for sequential
    Monte Carlo methods", 2012).

    Parameters
    ----------
    log_weights : array_like [..., P]
        Not normalised; float32 or float64.
    u : array_like
        Uniform numbers as the scheme takes them for P samples: [...] for systematic, [..., P] for the others.
    threshold : float
        A row is resampled where ``ess < threshold * P``: never if it is 0, always if it is infinite.
    scheme : {"systematic", "stratified", "multinomial", "residual"}
        See the functions of these names.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., P]
        As `permute_ancestors` orders them, so that particles can be gathered in place; where a row is not resampled,
        every particle is its own.
    offspring : int64 array [..., P]
        How often each particle is an ancestor.
    log_weights : array [..., P]
        Of the particles afterwards, normalised: ``-log(P)`` where the row is resampled.
    log_sum, ess : array [...]
        Of the row before, as `normalize_log_weights` returns them.
    """
    engine, memory = backends.choose(backend, arrays.device(log_weights))
    values, back = memory.read_floats(log_weights, "log_weights")
    lead, dtype = leading_shape(values, "log_weights"), memory.dtype(values)
    uniforms = memory.read_floats(float(u) if type(u) is int else u, "u")[0]
    if _samples(scheme, uniforms, lead, values.shape[-1]) != values.shape[-1]:
        raise ValueError(f"u has shape {tuple(uniforms.shape)}; {scheme} needs {tuple(values.shape)} here")
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold!r}; it must be 0 or a positive number")
    ancestors, counts = memory.empty(values.shape, np.int64), memory.empty(values.shape, np.int64)
    normalized, log_sum, ess = memory.empty(values.shape, dtype), memory.empty(lead, dtype), memory.empty(lead, dtype)
    outputs = ancestors, counts, normalized, log_sum, ess
    status = engine.adaptive_resample(scheme, float(threshold), values, uniforms, *outputs)
    if status is not None:
        refuse(status, check, u=uniforms, log_weights=values)
    return Resampled(*map(back, outputs))


@arrays.on_its_stream
def offspring(a: Array, num_particles: int, *, backend: str | None = None, check: bool = True) -> Array:
    """Count how often each particle is an ancestor.

    Parameters
    ----------
    a : integer array_like [..., M]
        Ancestors in [0, num_particles), in any order.
    num_particles : int
        P, the number of particles.
    backend, check
        See the module.

    Returns
    -------
    counts : int64 array [..., P]
    """
    engine, memory = backends.choose(backend, arrays.device(a))
    ancestors, back = memory.read_integers(a, "a")
    counts = memory.empty((*leading_shape(ancestors, "a"), read_count(num_particles, "num_particles")), np.int64)
    refuse(engine.offspring(ancestors, counts), check, num_particles, a=ancestors)
    return back(counts)


@arrays.on_its_stream
def permute_ancestors(a: Array, *, backend: str | None = None, check: bool = True) -> Array:
    """Reorder ancestors so that every survivor keeps its own slot.

    Particles can then be gathered in place, and only those that changed are moved.

    Parameters
    ----------
    a : integer array_like [..., P]
        As many ancestors as particles, in any order.
    backend, check
        See the module.

    Returns
    -------
    ancestors : int64 array [..., P]
        The same multiset, with ``a[i] == i`` for every i that occurs in it. The other slots, in ascending
        order, take the remaining copies in ascending order.
    """
    engine, memory = backends.choose(backend, arrays.device(a))
    ancestors, back = memory.read_integers(a, "a")
    leading_shape(ancestors, "a")
    permuted = memory.empty(ancestors.shape, np.int64)
    refuse(engine.permute_ancestors(ancestors, permuted), check, ancestors.shape[-1], a=ancestors)
    return back(permuted)


@arrays.on_its_stream
def gather_particles(
    particles: Array | Sequence[Array],
    a: Array,
    out: Array | Sequence[Array] | None = None,
    *,
    backend: str | None = None,
    check: bool = True,
) -> Array:
    """Copy each sample's ancestor into its slot: ``out[i] = particles[a[i]]``.

    Parameters
    ----------
    particles : array_like [P, ...], or a sequence of them
        Any type of fixed size. A tuple or list is all state of the particles, gathered alike.
    a : integer array_like [M]
        Ancestors in [0, P).
    out : array [M, ...], or a sequence of them, optional
        Where to write, in memory that ``a`` does not have. It may be ``particles`` itself if ``a`` comes from
        `permute_ancestors`: then only the particles that changed are moved.
    backend, check
        See the module. Nothing is moved where an ancestor is bad.

    Returns
    -------
    out : array [M, ...], or a tuple of them
    """
    if isinstance(particles, tuple | list):
        outs = [None] * len(particles) if out is None else out
        if not isinstance(outs, tuple | list) or len(outs) != len(particles):
            raise ValueError(f"out must be a tuple or list of {len(particles)} arrays, as particles is")
        how = {"backend": backend, "check": check}
        return tuple(gather_particles(p, a, o, **how) for p, o in zip(particles, outs, strict=True))
    engine, memory = backends.choose(backend, arrays.device(particles))
    state, back = memory.read(particles, "particles")
    ancestors, dtype = memory.read_integers(a, "a")[0], memory.dtype(state)
    if dtype.hasobject:
        raise TypeError("particles hold Python objects; they must be of a type of fixed size")
    if state.ndim == 0 or state.shape[0] == 0:
        raise ValueError(f"particles have shape {tuple(state.shape)}; they must be [P, ...] with P >= 1")
    if ancestors.ndim != 1 or ancestors.shape[0] == 0:
        raise ValueError(f"a has shape {tuple(ancestors.shape)}; it must be [M] with M >= 1")
    shape = (*ancestors.shape, *state.shape[1:])
    target = memory.empty(shape, dtype) if out is None else memory.read_output(out, "out")
    if target.shape != shape or memory.dtype(target) != dtype:
        raise ValueError(
            f"out has shape {tuple(target.shape)} and dtype {memory.dtype(target)}; it must have {shape} and {dtype}"
        )
    refuse_overlap(memory, {"out": target}, {"a": ancestors})
    refuse(engine.gather_particles(state, ancestors, target), check, state.shape[0], a=ancestors, out=target)
    return back(target) if out is None else out
