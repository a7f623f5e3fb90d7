"""Leapfrog steps: one pass over the weights, or a whole trajectory of them.

The kernel reads position, momentum, gradient and precision and writes momentum and position, 24 bytes a weight; the
normal numbers of a refreshment are made in registers from the counters that name them. A program takes a run of one
particle's weights; its three energies are summed in float64.

A trajectory begins and ends with this kernel, since energies are wanted there; between them the gradient kernel itself
moves the weights (`fastsmc.kernels.weight_gradient`), where one launch sums a whole gradient. Everything that varies
from one trajectory to the next is read from the device, so that it can be replayed as a graph
(`fastsmc.kernels.graphs`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import EXACT, Build
from fastsmc.kernels.evaluation import Evaluation
from fastsmc.kernels.graphs import GRAPHS, Graphs, place
from fastsmc.kernels.mlp import Data
from fastsmc.kernels.philox import KEY, key_tensor, normals, signed, write_key
from fastsmc.kernels.sizes import cdiv
from fastsmc.kernels.sums import add_slices
from fastsmc.kernels.tiles import Tiles
from fastsmc.kernels.update import PLAN, Update, drifted, kicked, plan_tensor, refreshed, write_plan

_BLOCK = 1024
_WARPS = 4


@triton.jit
def _energy(v, precision):
    return 0.5 * tl.sum(precision * (v.to(tl.float64) * v), axis=0)


@triton.jit
def _leapfrog_kernel(
    particles,
    momentum,
    grad,
    prior_precision,
    scale,
    noise,
    out,
    partials,
    plan,
    key,
    dim,
    blocks,
    num_particles,
    BLOCK: tl.constexpr,
):
    """One run of weights of one particle; the momentum is refreshed if there is a ``key``."""
    block = tl.program_id(0) % blocks
    particle = (tl.program_id(0) // blocks).to(tl.int64)
    i = block * BLOCK + tl.arange(0, BLOCK)
    mask = i < dim
    row = particle * dim
    theta = tl.load(particles + row + i, mask=mask, other=0)
    v = tl.load(momentum + row + i, mask=mask, other=0)
    g = tl.load(grad + row + i, mask=mask, other=0)
    lam = tl.load(prior_precision + i, mask=mask, other=0)
    s = 1.0 if scale is None else tl.load(scale + i, mask=mask, other=0)
    if key is not None:
        deviation = tl.load(plan + 4) if noise is None else tl.load(noise + i, mask=mask, other=0)
        xi = normals(key, particle, block * (BLOCK // 4), BLOCK // 4)
        v = tl.where(mask, refreshed(v, xi, deviation, tl.load(plan + 3)), 0.0)
    before = _energy(v, 1.0)
    v = kicked(v, theta, g, lam, s, plan)
    moved = drifted(theta, v, s, plan)
    tl.store(momentum + row + i, v, mask=mask)
    tl.store(out + row + i, moved, mask=mask)
    energies = partials + (block.to(tl.int64) * num_particles + particle) * 3
    tl.store(energies, before)
    tl.store(energies + 1, _energy(v, 1.0))
    tl.store(energies + 2, _energy(moved, lam))


class State(NamedTuple):
    """Particles and momentum [P, d], the gradient of the log-likelihood, prior precision [d], scale [d] or None."""

    particles: torch.Tensor
    momentum: torch.Tensor
    grad: torch.Tensor
    prior_precision: torch.Tensor
    scale: torch.Tensor | None


def step(
    state: State,
    noise: torch.Tensor | None,
    out: torch.Tensor,
    energies: torch.Tensor,
    plan: torch.Tensor,
    key: torch.Tensor | None,
) -> None:
    """One step by a plan and a key on the device; the momentum is refreshed if there is a key."""
    P, dim = state.particles.shape
    blocks = cdiv(dim, _BLOCK)
    partials = energies.new_empty((blocks, P, 3))
    _leapfrog_kernel[(P * blocks,)](
        *state, noise, out, partials, plan, key, dim, blocks, P, BLOCK=_BLOCK, num_warps=_WARPS, **EXACT
    )
    add_slices(partials, energies)


def leapfrog(
    particles: torch.Tensor,
    momentum: torch.Tensor,
    grad: torch.Tensor,
    precision: torch.Tensor,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
    energies: torch.Tensor,
    kick: float,
    drift: float,
    likelihood_scale: float,
    refresh: bool,
    persistence: float,
    seed: int,
    iteration: int,
    stream: int,
    first_slot: int,
) -> None:
    """Refresh, kick, drift; energies [P, 3] as fastsmc.ops.leapfrog returns them."""
    device = particles.device
    plan = plan_tensor(kick, drift, likelihood_scale, persistence, device)
    key = key_tensor(seed, iteration, stream, first_slot, device) if refresh else None
    step(State(particles, momentum, grad, precision, scale), noise, out, energies, plan, key)


_SIZES = ("size", "likelihood_scale", "persistence", "deviation")
_NAMES = ("seed", "iteration", "stream", "first_slot")


@triton.jit(do_not_specialize=[*_SIZES, *_NAMES])
def _plans_kernel(plans, key, size, likelihood_scale, persistence, deviation, seed, iteration, stream, first_slot):
    """The three plans of a trajectory, and the key of its refreshment if there is one."""
    write_plan(plans, 0.5 * size, size, likelihood_scale, persistence, deviation)
    write_plan(plans + PLAN, size, size, likelihood_scale, persistence, deviation)
    write_plan(plans + 2 * PLAN, 0.5 * size, 0.0, likelihood_scale, persistence, deviation)
    if key is not None:
        write_key(key, seed, iteration, stream, first_slot)


class Terms(NamedTuple):
    """What differs from one trajectory of a batch to the next, and is small.

    Weights [B] of the samples or None; scale [d] or None; the plans of the first step, the inner ones and the last; the
    key of the refreshment or None.
    """

    weights: torch.Tensor | None
    scale: torch.Tensor | None
    plans: torch.Tensor
    key: torch.Tensor | None


class Ends(NamedTuple):
    """What a trajectory tells: log-likelihood [P] at its end, energies [P, 3] at its start and its end."""

    total: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor


def steps(evaluation: Evaluation, state: State, num_steps: int, terms: Terms, ends: Ends) -> torch.Tensor | None:
    """A trajectory by plans on the device, in place: half a kick and a drift, then a gradient and a kick each time."""
    evaluation = evaluation.weighted(terms.weights).rounded()
    particles, momentum, grad, prior_precision, scale = state = state._replace(scale=terms.scale)
    first, inner, last = terms.plans
    status = evaluation.status()
    step(state, None, particles, ends.start, first, terms.key)
    update = Update(particles, momentum, prior_precision, scale, inner)
    for _ in range(num_steps - 1):
        if evaluation.schedule.fuses:
            evaluation.log_likelihood(particles, status, None, update=update)
        else:
            evaluation.log_likelihood(particles, status, None, grad)
            step(state, None, particles, ends.end, inner, None)
    evaluation.log_likelihood(particles, status, ends.total, grad)
    step(state, None, particles, ends.end, last, None)
    return status


def trajectory(
    layers: np.ndarray,
    likelihood: int,
    noise: float,
    precision: int,
    particles: torch.Tensor,
    momentum: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor | None,
    prior_precision: torch.Tensor,
    scale: torch.Tensor | None,
    total: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    step_size: float,
    num_steps: int,
    likelihood_scale: float,
    refresh: bool,
    persistence: float,
    seed: int,
    iteration: int,
    stream: int,
    first_slot: int,
    *,
    tiles: Tiles | None = None,
    graphs: Graphs = GRAPHS,
) -> torch.Tensor | None:
    """Half a kick and a drift, then the gradient and a kick after every drift, to the same bits as one by one."""
    device = particles.device
    plans = torch.empty(3, PLAN.value, dtype=torch.float32, device=device)
    key = torch.empty(KEY.value, dtype=torch.int64, device=device) if refresh else None
    deviation = math.sqrt(1 - persistence**2)
    numbers = map(float, (step_size, likelihood_scale, persistence, deviation))
    _plans_kernel[(1,)](plans, key, *numbers, signed(seed), iteration, stream, first_slot)

    evaluation = Evaluation.of(layers, precision, Data(x, y, weights, likelihood, noise), tiles)
    state = State(particles, momentum, grad, prior_precision, scale)
    places = map(place, (particles, momentum, grad, x, y, prior_precision))
    name = (layers.tobytes(), precision, likelihood, noise, tiles, num_steps, *places)
    work = partial(steps, evaluation, state, num_steps)
    scratch = evaluation.schedule.scratch(len(particles))
    return graphs.run(name, scratch, work, Terms(weights, scale, plans, key), Ends(total, start, end))


def _build(name: str, absent: tuple[str, ...], registers: int) -> Build:
    pointers = ("particles", "momentum", "grad", "prior_precision", "scale", "noise", "out", "plan")
    signature = dict.fromkeys(pointers, "*fp32") | {"partials": "*fp64", "key": "*i64"}
    signature |= dict.fromkeys(("dim", "blocks", "num_particles"), "i32")
    constants = dict.fromkeys(absent) | {"BLOCK": _BLOCK}
    signature |= dict.fromkeys(constants, "constexpr")
    return Build(name, _leapfrog_kernel, signature, constants, _WARPS, registers=registers, shared=4_096, options=EXACT)


BUILDS = (
    _build("leapfrog step", ("scale", "noise", "key"), 72),
    _build("leapfrog step, scaled", ("noise", "key"), 72),
    _build("leapfrog step, refreshed", ("scale", "noise"), 96),
    _build("leapfrog step, scaled and refreshed", (), 120),
    Build(
        "the plans of a trajectory",
        _plans_kernel,
        {"plans": "*fp32", "key": "*i64"} | dict.fromkeys(_SIZES, "fp32") | dict.fromkeys(_NAMES, "i64"),
        {},
        registers=32,
        shared=0,
    ),
)
