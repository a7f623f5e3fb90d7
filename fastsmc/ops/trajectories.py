"""Leapfrog steps, one at a time and whole trajectories; `fastsmc.ops` says what all ops share."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, backends, random
from fastsmc.arrays import Memory, View
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network
from fastsmc.ops.checks import check_float32, check_range, read_count, refuse, refuse_overlap
from fastsmc.ops.densities import precision_code, read_batch, read_particles

Array = Any


class LeapfrogEnergies(NamedTuple):
    """What `leapfrog` returns, float64 [P] each."""

    kinetic_before: Array
    kinetic_after: Array
    prior_energy: Array


@arrays.on_its_stream
def leapfrog(
    particles: Array,
    momentum: Array,
    grad: Array,
    *,
    precision: Array,
    kick: float,
    drift: float,
    scale: Array | None = None,
    likelihood_scale: float = 1.0,
    refresh: float | None = None,
    noise: Array | None = None,
    seed: int = 0,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    out: Array | None = None,
    backend: str | None = None,
    check: bool = True,
) -> LeapfrogEnergies:
    """Momentum and position of every particle in one pass over the weights: a kick, then a drift.

    ``v = refresh * v + noise * xi`` where ``refresh`` is given, with xi counter-based normal numbers;
    ``v += kick * scale * (likelihood_scale * grad - precision * theta)``; ``theta += drift * scale * v``. A leapfrog
    trajectory of step e is kick e/2 and drift e, then kick e and drift e after each gradient but the last, then kick
    e/2.

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
    scale : float32 array [d], optional
        Positive and finite, one if not given: position and momentum are those of ``theta / scale``, which is a mass
        matrix diag(1 / scale^2) (Neal, 2011, section 4.1).
    likelihood_scale
        What multiplies the gradient.
    refresh
        The share of the momentum that is kept, in [0, 1]; None leaves the momentum alone, and with 0 it is not read.
    noise : float32 array [d], optional
        Standard deviation of what a refreshment adds, not negative; ``sqrt(1 - refresh^2)`` if not given, which keeps
        the momentum standard normal where forces have no noise of their own.
    seed, iteration, stream, first_slot
        Name the normal numbers (see `fastsmc.random`).
    out : float32 array [P, d], optional
        Where the new positions go; ``particles`` itself if not given. Like ``momentum``, which may be ``grad``, it
        shares no memory with another argument.
    backend, check
        See the module.

    Returns
    -------
    kinetic_before, kinetic_after, prior_energy : float64 [P]
        ``v.v / 2`` before and after the kick, and ``sum(precision * theta^2) / 2`` at the new position.
    """
    engine, memory = backends.choose(backend, arrays.device(particles))
    position, back = memory.read_floats(particles, "particles")
    v = memory.read_output(momentum, "momentum")
    moved = memory.read_output(particles if out is None else out, "out")
    gradient = memory.read_floats(grad, "grad")[0]
    for name, array in (("momentum", v), ("grad", gradient), ("out", moved)):
        _check_like_particles(name, array, position)
    row = partial(_read_row, particles=position, memory=memory, check=check)
    weight, factors, deviation = row("precision", precision), row("scale", scale), row("noise", noise)
    _check_refresh(refresh)
    rows = {"precision": weight, "scale": factors, "noise": deviation}
    refuse_overlap(memory, {"particles" if out is None else "out": moved}, {"momentum": v, "grad": gradient, **rows})
    refuse_overlap(memory, {"momentum": v}, {"particles": position, **rows})
    for name, written, beside, read in (("out", moved, "particles", position), ("momentum", v, "grad", gradient)):
        if memory.overlap(written, read) and not memory.overlap(written[:1, :1], read[:1, :1]):
            raise ValueError(f"{name} overlaps {beside}; it must be {beside} itself or memory of its own")
    random.check_key(seed, iteration, stream, first_slot)
    energies = memory.empty((len(position), 3), np.float64)
    check_float32(memory.dtype(position), engine)
    engine.leapfrog(
        position,
        v,
        gradient,
        weight,
        factors,
        deviation,
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
    return LeapfrogEnergies(*map(back, memory.contiguous(energies.T)))


class Trajectory(NamedTuple):
    """What `trajectory` returns besides the state that it overwrites, float64 [P] each."""

    log_likelihood: Array
    kinetic_before: Array
    kinetic_after: Array
    prior_energy: Array


@arrays.on_its_stream
def trajectory(
    network: Network,
    likelihood: Likelihood,
    particles: Array,
    momentum: Array,
    grad: Array,
    x: Array,
    y: Array,
    *,
    weights: Array | None = None,
    prior_precision: Array,
    step_size: float,
    num_steps: int,
    scale: Array | None = None,
    likelihood_scale: float = 1.0,
    refresh: float | None = None,
    seed: int = 0,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    precision: str = "highest",
    backend: str | None = None,
    check: bool = True,
) -> Trajectory:
    """Leapfrog steps of every particle over a batch that all share, without coming back between them.

    The same as `leapfrog` and `log_likelihood_and_grad` in turn, to the bit: half a kick, then ``num_steps`` times a
    drift, the gradient and a kick, the last one by half.

    Parameters
    ----------
    network, likelihood, x, y, weights, precision
        As for `log_likelihood`.
    particles, momentum, grad : float32 array [P, d]
        Positions, momenta and the gradient of the log-likelihood there; overwritten by those at the end.
    prior_precision : float32 array [d]
        Of the normal prior with mean zero.
    step_size, num_steps
        Length and number of the steps.
    scale, likelihood_scale, refresh, seed, iteration, stream, first_slot, backend, check
        As for `leapfrog`; the momentum is refreshed once, at the start.

    Returns
    -------
    log_likelihood : float64 [P]
        At the end.
    kinetic_before, kinetic_after, prior_energy : float64 [P]
        ``v.v / 2`` at the start, after the refreshment, and at the end; ``sum(prior_precision * theta^2) / 2`` at the
        end.
    """
    engine, memory = backends.choose(backend, arrays.device(particles))
    position, back = read_particles(particles, network, (engine, memory))
    state = {"particles": memory.read_output(particles, "particles")}
    for name, array in (("momentum", momentum), ("grad", grad)):
        state[name] = memory.read_output(array, name)
        _check_like_particles(name, state[name], position)
    steps = read_count(num_steps, "num_steps")
    batch = read_batch(x, y, weights, network, likelihood, memory, memory.dtype(position), check)
    row = partial(_read_row, particles=position, memory=memory, check=check)
    weight, factors = row("precision", prior_precision), row("scale", scale)
    rows = {"x": batch.x, "y": batch.targets, "weights": batch.weights, "prior_precision": weight, "scale": factors}
    refuse_overlap(memory, state, rows)
    _check_refresh(refresh)
    random.check_key(seed, iteration, stream, first_slot)
    count = len(position)
    total, start, end = (memory.empty(shape, np.float64) for shape in ((count,), (count, 3), (count, 3)))
    status = engine.trajectory(
        network.layer_table,
        likelihood.code,
        likelihood.noise,
        precision_code(precision),
        *state.values(),
        *batch,
        weight,
        factors,
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
    refuse(status, check, network.num_outputs, y=batch.targets)
    total += likelihood.constant(batch.targets, batch.weights)
    columns = (total, start[:, 0], end[:, 1], end[:, 2])
    return Trajectory(*(back(memory.contiguous(column)) for column in columns))


_NEEDS = {
    "scale": ("positive and finite", lambda row: (row > 0) & (row < np.inf)),
    "noise": ("non-negative and finite", lambda row: (row >= 0) & (row < np.inf)),
}
"""What the numbers of a row [d] must be, where it is worth a look."""


def _read_row(name: str, row: Array | None, particles: View, memory: Memory, check: bool) -> View | None:
    if row is None:
        return None
    values = memory.read_floats(row, name)[0]
    if particles.ndim != 2 or values.shape != particles.shape[1:]:
        shapes = tuple(values.shape), tuple(particles.shape)
        raise ValueError(f"{name} has shape {shapes[0]}, particles {shapes[1]}; they must be [d] and [P, d]")
    values = memory.cast(values, memory.dtype(particles))
    if check and name in _NEEDS:
        what, good = _NEEDS[name]
        check_range(name, values, good(values), what)
    return values


def _check_like_particles(name: str, array: View, particles: View) -> None:
    if array.shape != particles.shape or array.dtype != particles.dtype:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)} and dtype {array.dtype}; "
            f"it must have {tuple(particles.shape)} and {particles.dtype}, as particles"
        )


def _check_refresh(refresh: float | None) -> None:
    if refresh is not None and not 0 <= refresh <= 1:
        raise ValueError(f"refresh is {refresh}; it must lie between 0 and 1")
