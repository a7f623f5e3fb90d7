"""Every kernel as one plain function: check, allocate, dispatch. The only door to the kernels.

Arrays may be NumPy arrays, torch tensors or anything that speaks DLPack; results come back as the same kind.
Leading dimensions are a batch. ``backend`` forces an engine (see `fastsmc.backends`). Bad values raise
ValueError, bad types TypeError, in one sentence each; the tests of values are part of the kernels' own
passes. ``check=False`` skips those that would wait for a device; on host arrays they cost nothing and are
always made.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends, random
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network

Array = Any

SCHEMES = {"systematic": False, "stratified": True, "multinomial": True, "residual": True}
"""The resampling schemes, and whether each sample has a uniform number of its own."""

PRECISIONS = ("highest", "high", "medium")
"""Float32 throughout; each operand the sum of two bfloat16 numbers; bfloat16 operands. Sums are float32 always."""


class NormalizedWeights(NamedTuple):
    """What `normalize_log_weights` returns."""

    weights: Array
    log_sum: Array
    ess: Array


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
    values, back = arrays.read_floats(log_weights, "log_weights")
    lead = _rows(values, "log_weights")
    weights = np.empty(values.shape, values.dtype)
    log_sum, ess = np.empty(lead, values.dtype), np.empty(lead, values.dtype)
    status = backends.choose(backend).normalize_log_weights(values, weights, log_sum, ess)
    if status:
        raise _bad_value(status, log_weights=values)
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
    return _resample("systematic", False, weights, u, num_samples, backend)


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
    return _resample("stratified", False, weights, u, None, backend)


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
    return _resample("multinomial", False, weights, u, None, backend)


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
    return _resample("residual", False, weights, u, num_samples, backend)


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
    return _resample(scheme, log, log_weights, u, num_samples, backend)


def _resample(scheme: str, log: bool, weights: Array, u: Array, num_samples: int | None, backend: str | None) -> Array:
    name = "log_weights" if log else "weights"
    values, back = arrays.read_floats(weights, name)
    lead = _rows(values, name)
    uniforms = arrays.read_floats(float(u) if type(u) is int else u, "u")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {', '.join(map(repr, SCHEMES))}")
    if SCHEMES[scheme]:
        samples = uniforms.shape[-1] if uniforms.ndim else 0
        if uniforms.shape[:-1] != lead or samples == 0:
            raise ValueError(f"u has shape {uniforms.shape}; {scheme} needs {_shape(*lead, 'M')} with M >= 1")
        if num_samples is not None and num_samples != samples:
            raise ValueError(f"num_samples is {num_samples}, but the rows of u have {samples} numbers")
    else:
        samples = values.shape[-1] if num_samples is None else _count(num_samples, "num_samples")
        if uniforms.shape != lead:
            raise ValueError(f"u has shape {uniforms.shape}; {scheme} needs {lead}, one number for each row")
    ancestors = np.empty((*lead, samples), np.int64)
    status = backends.choose(backend).resample(scheme, log, values, uniforms, ancestors)
    if status:
        raise _bad_value(status, u=uniforms, **{name: values})
    return back(ancestors)


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
    ancestors, back = arrays.read_integers(a, "a")
    counts = np.empty((*_rows(ancestors, "a"), _count(num_particles, "num_particles")), np.int64)
    status = backends.choose(backend).offspring(ancestors, counts)
    if status:
        raise _bad_value(status, num_particles, a=ancestors)
    return back(counts)


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
    ancestors, back = arrays.read_integers(a, "a")
    _rows(ancestors, "a")
    permuted = np.empty(ancestors.shape, np.int64)
    status = backends.choose(backend).permute_ancestors(ancestors, permuted)
    if status:
        raise _bad_value(status, ancestors.shape[-1], a=ancestors)
    return back(permuted)


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
        Where to write. It may be ``particles`` itself if ``a`` comes from `permute_ancestors`: then only the
        particles that changed are moved.
    backend, check
        See the module.

    Returns
    -------
    out : array [M, ...], or a tuple of them
    """
    if isinstance(particles, tuple | list):
        outs = [None] * len(particles) if out is None else out
        if not isinstance(outs, tuple | list) or len(outs) != len(particles):
            raise ValueError(f"out must be a tuple or list of {len(particles)} arrays, as particles is")
        gathered = [gather_particles(p, a, o, backend=backend) for p, o in zip(particles, outs, strict=True)]
        return tuple(gathered)
    state, back = arrays.read(particles, "particles")
    ancestors = arrays.read_integers(a, "a")[0]
    if state.dtype.hasobject:
        raise TypeError("particles hold Python objects; they must be of a type of fixed size")
    if state.ndim == 0 or state.shape[0] == 0:
        raise ValueError(f"particles have shape {state.shape}; they must be [P, ...] with P >= 1")
    if ancestors.ndim != 1 or ancestors.size == 0:
        raise ValueError(f"a has shape {ancestors.shape}; it must be [M] with M >= 1")
    shape = ancestors.shape + state.shape[1:]
    target = np.empty(shape, state.dtype) if out is None else arrays.read_output(out, "out")
    if target.shape != shape or target.dtype != state.dtype:
        raise ValueError(
            f"out has shape {target.shape} and dtype {target.dtype}; it must have {shape} and {state.dtype}"
        )
    status = backends.choose(backend).gather_particles(state, ancestors, target)
    if status:
        raise _bad_value(status, state.shape[0], a=ancestors, out=target)
    return back(target) if out is None else out


class LeapfrogEnergies(NamedTuple):
    """What `leapfrog` returns, float64 [P] each."""

    kinetic_before: Array
    kinetic_after: Array
    prior_energy: Array


def log_likelihood(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    x: Array,
    y: Array,
    *,
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
    precision : {"highest", "high", "medium"}
        What the products may lose (see `precision_in_use`).
    backend
        See the module.

    Returns
    -------
    log_likelihood : float64 array [P]
    """
    return _likelihood(network, likelihood, particles, x, y, False, precision, backend)[0]


def log_likelihood_and_grad(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    x: Array,
    y: Array,
    *,
    precision: str = "highest",
    backend: str | None = None,
) -> tuple[Array, Array]:
    """Log-likelihood [P] and its gradient [P, d], in the type of the particles; arguments as for `log_likelihood`."""
    return _likelihood(network, likelihood, particles, x, y, True, precision, backend)


def _likelihood(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    x: Array,
    y: Array,
    with_grad: bool,
    precision: str,
    backend: str | None,
) -> tuple[Array, Array]:
    engine = backends.choose(backend)
    host, back = read_particles(particles, network, engine)
    inputs, targets = _read_batch(x, y, network, likelihood, host.dtype)
    total, grad = np.empty(len(host)), np.empty_like(host) if with_grad else None
    status = engine.log_likelihood(
        network.layer_table,
        likelihood.code,
        likelihood.noise,
        _precision_code(precision),
        host,
        inputs,
        targets,
        total,
        grad,
    )
    if status:
        raise _bad_value(status, network.num_outputs, y=targets)
    return back(total), None if grad is None else back(grad)


def network_outputs(
    network: Network, particles: Array, x: Array, *, precision: str = "highest", backend: str | None = None
) -> Array:
    """Outputs of every particle's network for every row of x: [P, B, outputs], in the type of the particles."""
    engine = backends.choose(backend)
    host, back = read_particles(particles, network, engine)
    inputs = _read_inputs(x, network, host.dtype)
    outputs = np.empty((len(host), len(inputs), network.num_outputs), host.dtype)
    engine.network_outputs(network.layer_table, _precision_code(precision), host, inputs, outputs)
    return back(outputs)


def precision_in_use(network: Network, precision: str, *, backend: str | None = None) -> str:
    """The precision in which an engine computes a network here when it is asked for one: never a lower one."""
    return PRECISIONS[backends.choose(backend).precision_in_use(network.layer_table, _precision_code(precision))]


def leapfrog(
    particles: Array,
    momentum: Array,
    grad: Array,
    *,
    precision: Array,
    kick: float,
    drift: float,
    likelihood_scale: float = 1.0,
    refresh: float | None = None,
    seed: int = 0,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    out: Array | None = None,
    backend: str | None = None,
) -> LeapfrogEnergies:
    """Momentum and position of every particle in one pass over the weights: a kick, then a drift.

    ``v = refresh * v + sqrt(1 - refresh^2) * xi`` where ``refresh`` is given, with xi counter-based normal numbers;
    ``v += kick * (likelihood_scale * grad - precision * theta)``; ``theta += drift * v``. A leapfrog trajectory of
    step e is kick e/2 and drift e, then kick e and drift e after each gradient but the last, then kick e/2.

    Parameters
    ----------
    particles, grad : float32 array [P, d]
        Positions, and the gradient of the log-likelihood there.
    momentum : float32 array [P, d]
        Overwritten; finite before.
    precision : float32 array [d]
        Of the normal prior with mean zero.
    kick, drift
        Step of the momentum and of the position.
    likelihood_scale
        What multiplies the gradient.
    refresh
        The share of the momentum that is kept, in [0, 1]; None leaves the momentum alone.
    seed, iteration, stream, first_slot
        Name the normal numbers (see `fastsmc.random`).
    out : float32 array [P, d], optional
        Where the new positions go; ``particles`` itself if not given.

    Returns
    -------
    kinetic_before, kinetic_after, prior_energy : float64 [P]
        ``v.v / 2`` before and after the kick, and ``sum(precision * theta^2) / 2`` at the new position.
    """
    position, back = arrays.read_floats(particles, "particles")
    v = arrays.read_output(momentum, "momentum")
    moved = arrays.read_output(particles if out is None else out, "out")
    gradient = arrays.read_floats(grad, "grad")[0]
    for name, array in (("momentum", v), ("grad", gradient), ("out", moved)):
        _check_like_particles(name, array, position)
    weight = _read_prior(precision, position)
    _check_refresh(refresh)
    if np.may_share_memory(moved, v) or np.may_share_memory(moved, gradient):
        raise ValueError("out overlaps momentum or grad; it must be particles itself or memory of its own")
    random.check_key(seed, iteration, stream, first_slot)
    energies = np.empty((len(position), 3))
    engine = backends.choose(backend)
    _check_float32(engine, position)
    engine.leapfrog(
        position,
        v,
        gradient,
        weight,
        moved,
        energies,
        kick,
        drift,
        likelihood_scale,
        refresh is not None,
        refresh or 0.0,
        seed,
        iteration,
        stream,
        first_slot,
    )
    return LeapfrogEnergies(*(back(np.ascontiguousarray(column)) for column in energies.T))


class Trajectory(NamedTuple):
    """What `trajectory` returns besides the state that it overwrites, float64 [P] each."""

    log_likelihood: Array
    kinetic_before: Array
    kinetic_after: Array
    prior_energy: Array


def trajectory(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    momentum: Array,
    grad: Array,
    x: Array,
    y: Array,
    *,
    prior_precision: Array,
    step_size: float,
    num_steps: int,
    likelihood_scale: float = 1.0,
    refresh: float | None = None,
    seed: int = 0,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    precision: str = "highest",
    backend: str | None = None,
) -> Trajectory:
    """Leapfrog steps of every particle over a batch that all share, without coming back between them.

    The same as `leapfrog` and `log_likelihood_and_grad` in turn, to the bit: half a kick, then ``num_steps`` times a
    drift, the gradient and a kick, the last one by half.

    Parameters
    ----------
    network, likelihood, x, y, precision
        As for `log_likelihood`.
    particles, momentum, grad : float32 array [P, d]
        Positions, momenta and the gradient of the log-likelihood there; overwritten by those at the end.
    prior_precision : float32 array [d]
        Of the normal prior with mean zero.
    step_size, num_steps
        Length and number of the steps.
    likelihood_scale, refresh, seed, iteration, stream, first_slot, backend
        As for `leapfrog`; the momentum is refreshed once, at the start.

    Returns
    -------
    log_likelihood : float64 [P]
        At the end.
    kinetic_before, kinetic_after, prior_energy : float64 [P]
        ``v.v / 2`` at the start, after the refreshment, and at the end; ``sum(prior_precision * theta^2) / 2`` at the
        end.
    """
    engine = backends.choose(backend)
    position, back = read_particles(particles, network, engine)
    state = {"particles": arrays.read_output(particles, "particles")}
    for name, array in (("momentum", momentum), ("grad", grad)):
        state[name] = arrays.read_output(array, name)
        _check_like_particles(name, state[name], position)
    for first, second in combinations(state, 2):
        if np.may_share_memory(state[first], state[second]):
            raise ValueError(f"{second} overlaps {first}; each must have memory of its own")
    steps = _count(num_steps, "num_steps")
    inputs, targets = _read_batch(x, y, network, likelihood, position.dtype)
    weight = _read_prior(prior_precision, position)
    _check_refresh(refresh)
    random.check_key(seed, iteration, stream, first_slot)
    total, start, end = np.empty(len(position)), np.empty((len(position), 3)), np.empty((len(position), 3))
    status = engine.trajectory(
        network.layer_table,
        likelihood.code,
        likelihood.noise,
        _precision_code(precision),
        *state.values(),
        inputs,
        targets,
        weight,
        total,
        start,
        end,
        step_size,
        steps,
        likelihood_scale,
        refresh is not None,
        refresh or 0.0,
        seed,
        iteration,
        stream,
        first_slot,
    )
    if status:
        raise _bad_value(status, network.num_outputs, y=targets)
    columns = (total, start[:, 0], end[:, 1], end[:, 2])
    return Trajectory(*(back(np.ascontiguousarray(column)) for column in columns))


def read_particles(
    particles: Array, network: Network, engine: ModuleType | None = None
) -> tuple[np.ndarray, arrays.Back]:
    """View particles [P, d] of a network on the host."""
    host, back = arrays.read_floats(particles, "particles")
    if host.ndim != 2 or host.shape[1] != network.num_params or len(host) == 0:
        raise ValueError(f"particles has shape {host.shape}; this network needs [P, {network.num_params}] with P >= 1")
    if engine is not None:
        _check_float32(engine, host)
    return host, back


def _check_float32(engine: ModuleType, particles: np.ndarray) -> None:
    if particles.dtype != np.float32 and not engine.__name__.endswith("reference"):
        raise TypeError(
            f"particles has dtype {particles.dtype}; the engine computes in float32, backend='reference' in float64"
        )


def _read_inputs(x: Array, network: Network, dtype: np.dtype) -> np.ndarray:
    inputs, _ = arrays.read(x, "x")
    if inputs.dtype.kind not in "fiub":
        raise TypeError(f"x has dtype {inputs.dtype}; it must hold real numbers")
    if inputs.ndim < 2 or len(inputs) == 0 or math.prod(inputs.shape[1:]) != network.num_inputs:
        raise ValueError(f"x has shape {inputs.shape}; this network needs [B, {network.num_inputs}] with B >= 1")
    return np.ascontiguousarray(inputs.reshape(len(inputs), -1), dtype)


def _read_batch(
    x: Array, y: Array, network: Network, likelihood: Likelihood, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    inputs = _read_inputs(x, network, dtype)
    targets = likelihood.targets(arrays.read(y, "y")[0], network.num_outputs)
    if len(targets) != len(inputs):
        raise ValueError(f"y has {len(targets)} rows, but x has {len(inputs)}; they must agree")
    return inputs, targets


def _read_prior(precision: Array, particles: np.ndarray) -> np.ndarray:
    weight = arrays.read_floats(precision, "precision")[0]
    if particles.ndim != 2 or weight.shape != particles.shape[1:]:
        raise ValueError(
            f"precision has shape {weight.shape}, particles {particles.shape}; they must be [d] and [P, d]"
        )
    return weight.astype(particles.dtype, copy=False)


def _check_like_particles(name: str, array: np.ndarray, particles: np.ndarray) -> None:
    if array.shape != particles.shape or array.dtype != particles.dtype:
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; "
            f"it must have {particles.shape} and {particles.dtype}, as particles"
        )


def _check_refresh(refresh: float | None) -> None:
    if refresh is not None and not 0 <= refresh <= 1:
        raise ValueError(f"refresh is {refresh}; it must lie between 0 and 1")


def _precision_code(precision: str) -> int:
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(map(repr, PRECISIONS))}")
    return PRECISIONS.index(precision)


def _rows(values: np.ndarray, name: str) -> tuple[int, ...]:
    """Return the leading dimensions of an array [..., P]."""
    shape = values.shape
    if not shape or values.size == 0:
        raise ValueError(f"{name} has shape {shape}; it must have at least one dimension and one entry")
    return shape[:-1]


def _count(value: int, name: str) -> int:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; it must be an integer")
    if not 0 < value < arrays.LIMIT:
        raise ValueError(f"{name} is {value}; it must be at least 1 and less than 2^31")
    return int(value)


def _shape(*sizes: int | str) -> str:
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


# What engines report, by code: the argument, and the sentence about the entry that they point at.
_SENTENCES = {
    1: ("weights", "{entry} is {value}; weights must be non-negative and finite, with a positive sum"),
    2: ("weights", "{row} has only zeros; weights must have a positive sum"),
    3: ("log_weights", "{entry} is {value}; log weights must be numbers below +inf (-inf is weight zero)"),
    4: ("log_weights", "{row} has only -inf; at least one log weight must be finite"),
    5: ("u", "{entry} is {value}; it must lie in [0, 1)"),
    6: ("a", "{entry} is {value}; ancestors must lie in [0, {particles})"),
    7: ("a", "{entry} is {value}, a slot that is itself overwritten; permute_ancestors(a) can go in place"),
    8: ("a", "a has {size} entries; to gather in place there must be one for each of {particles} particles"),
    10: ("y", "{entry} is {value}; labels must lie in [0, {particles})"),
    9: ("out", "out overlaps particles; it must be particles itself or memory of its own"),
}


def _bad_value(status: tuple[int, int], particles: int = 0, **arguments: np.ndarray) -> ValueError:
    """Put the status of an engine, its code and a position in the argument's memory, into a sentence."""
    code, position = status
    name, sentence = _SENTENCES[code]
    array = arguments[name]
    index = tuple(map(int, np.unravel_index(position, array.shape)))
    facts = {"entry": _at(name, index), "row": _at(name, index[:-1]), "value": array[index]}
    return ValueError(sentence.format(**facts, size=array.size, particles=particles))


def _at(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name
