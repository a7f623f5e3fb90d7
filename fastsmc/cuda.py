"""The engine of CUDA C++: one function per op (see `fastsmc.backends`), on torch tensors.

Tensors become pointers and sizes; work is queued on torch's current stream, and scratch memory is torch's. In a package
built with ``FASTSMC_CUDA=HOST`` the kernels are their host twins, which compute on the host, thread after thread.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastsmc import _cuda
from fastsmc.arrays import on_its_device
from fastsmc.backends import FINE
from fastsmc.networks import Layer


class Cut(NamedTuple):
    """The longest row that one block takes whole, and the most parts of a longer one."""

    alone: int = _cuda.CUT[0]
    parts: int = _cuda.CUT[1]


DEFAULT_CUT = Cut()


class NoRoomError(NotImplementedError):
    """A block cannot hold a network, and its host twin has no other engine beside it."""


def available() -> tuple[bool, str]:
    """Whether there is a device for it, and the reason if not."""
    reason = _cuda.unavailable()
    return not reason, reason


def schemes() -> list[str]:
    """The schemes that `resample` knows."""
    return _cuda.schemes()


def normalize_log_weights(
    log_weights: Tensor, weights: Tensor, log_sum: Tensor, ess: Tensor, cut: Cut = DEFAULT_CUT
) -> Tensor:
    """Weights, log-sum and effective sample size of log weights [..., P]; returns the status."""
    rows, n = _rows(log_weights)
    function = _of_type("normalize_log_weights", log_weights)
    return _checked(function, cut, rows, n, log_weights, weights, log_sum, ess)


def resample(scheme: str, log: bool, weights: Tensor, u: Tensor, ancestors: Tensor, cut: Cut = DEFAULT_CUT) -> Tensor:
    """Ancestors [..., M] of weights [..., P], or of their logarithms, by uniform numbers; returns the status."""
    rows, n = _rows(weights)
    function, u_is_double = _of_type("resample", weights), u.dtype == torch.float64
    return _checked(function, cut, scheme, log, rows, n, ancestors.shape[-1], weights, u, u_is_double, ancestors)


def adaptive_resample(
    scheme: str,
    threshold: float,
    log_weights: Tensor,
    u: Tensor,
    ancestors: Tensor,
    offspring: Tensor,
    normalized: Tensor,
    log_sum: Tensor,
    ess: Tensor,
    cut: Cut = DEFAULT_CUT,
) -> Tensor:
    """Ancestors in place, offspring and log weights [..., P] of rows that are resampled or kept; returns the status."""
    function, u_is_double = _of_type("adaptive_resample", log_weights), u.dtype == torch.float64
    results = ancestors, offspring, normalized, log_sum, ess
    return _checked(function, cut, scheme, threshold, *_rows(log_weights), log_weights, u, u_is_double, *results)


def offspring(ancestors: Tensor, counts: Tensor, cut: Cut = DEFAULT_CUT) -> Tensor:
    """Count ancestors [..., M] into [..., P]; returns the status."""
    rows, m = _rows(ancestors)
    return _checked(_cuda.offspring, cut, rows, m, counts.shape[-1], ancestors, counts)


def permute_ancestors(ancestors: Tensor, permuted: Tensor, cut: Cut = DEFAULT_CUT) -> Tensor:
    """Survivors to their own slots, further copies to the others, both in ascending order; returns the status."""
    return _checked(_cuda.permute_ancestors, cut, *_rows(ancestors), ancestors, permuted)


def gather_particles(particles: Tensor, ancestors: Tensor, out: Tensor) -> Tensor:
    """Rows of particles [P, ...] into out [M, ...], which may be the particles themselves; returns the status."""
    row_bytes = particles[:1].numel() * particles.element_size()
    return _checked(_cuda.gather_particles, len(particles), len(ancestors), row_bytes, particles, ancestors, out)


def philox(out: Tensor, seed: int, iteration: int, stream: int, first_slot: int) -> None:
    """The integers themselves, uint32 [slots, numbers]."""
    _queue(_cuda.philox, *out.shape, out, seed, iteration, stream, first_slot)


def uniform(out: Tensor, seed: int, iteration: int, stream: int, first_slot: int) -> None:
    """Uniform numbers in [0, 1), float64 [slots, numbers]: 53 bits, from two words each."""
    _queue(_cuda.uniform, *out.shape, out, seed, iteration, stream, first_slot)


def normal(out: Tensor, seed: int, iteration: int, stream: int, first_slot: int) -> None:
    """Standard normal numbers, float32 [slots, numbers]."""
    _queue(_cuda.normal, *out.shape, out, seed, iteration, stream, first_slot)


def leapfrog(
    particles: Tensor,
    momentum: Tensor,
    grad: Tensor,
    precision: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
    energies: Tensor,
    *step: float,
) -> None:
    """Refresh, kick, drift by the numbers of a step; energies [P, 3] as `fastsmc.ops.leapfrog` returns them."""
    arrays = particles, momentum, grad, precision, scale, noise, out, energies
    _queue(_cuda.leapfrog, *particles.shape, *arrays, *step)


def serves(layers: np.ndarray, precision: int, samples: int) -> bool:
    """Whether a block has room for a network: dense, of few layers, a few ten thousand weights."""
    return _cuda.network_fits(layers, precision, samples)


def log_likelihood(
    layers: np.ndarray,
    likelihood: int,
    noise: float,
    precision: int,
    particles: Tensor,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    log_likelihood: Tensor,
    grad: Tensor | None,
) -> Tensor | None:
    """Log-likelihood [P] of every particle, and its gradient [P, d] if it is asked for; returns the status."""
    arrays = particles, x, y, weights, log_likelihood, grad
    if not serves(layers, precision, len(x)):
        return _triton(layers).log_likelihood(layers, likelihood, noise, precision, *arrays)
    return _checked(_cuda.log_likelihood, layers, likelihood, noise, precision, len(particles), len(x), *arrays)


def network_outputs(layers: np.ndarray, precision: int, particles: Tensor, x: Tensor, outputs: Tensor) -> None:
    """Outputs [P, B, K] of every particle's network."""
    if not serves(layers, precision, len(x)):
        return _triton(layers).network_outputs(layers, precision, particles, x, outputs)
    return _queue(_cuda.network_outputs, layers, precision, len(particles), len(x), particles, x, outputs)


def trajectory(
    layers: np.ndarray,
    likelihood: int,
    noise: float,
    precision: int,
    particles: Tensor,
    momentum: Tensor,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    prior_precision: Tensor,
    scale: Tensor | None,
    total: Tensor,
    start: Tensor,
    end: Tensor,
    step_size: float,
    num_steps: int,
    likelihood_scale: float,
    *refresh: Any,
) -> Tensor | None:
    """Half a kick and a drift, then the gradient and a kick after every drift, to the same bits as one by one.

    One launch where a block takes a particle through the whole batch, which is up to 4,096 samples.
    """
    density = layers, likelihood, noise, precision
    if serves(layers, precision, len(x)) and _cuda.network_slices(len(x)) == 1:
        arrays = particles, momentum, grad, x, y, weights, prior_precision, scale, total, start, end
        plan = step_size, num_steps, likelihood_scale, *refresh
        return _checked(_cuda.trajectory, *density, len(particles), len(x), *arrays, *plan)
    moved = particles, momentum, grad, prior_precision, scale, None, particles
    half, still = step_size / 2, (False, 0.0, 0, 0, 0, 0)
    leapfrog(*moved, start, half, step_size, likelihood_scale, *refresh)
    for k in range(num_steps):
        status = log_likelihood(*density, particles, x, y, weights, total, grad)
        kick, drift = (step_size, step_size) if k + 1 < num_steps else (half, 0.0)
        leapfrog(*moved, end, kick, drift, likelihood_scale, *still)
    return status


def precision_in_use(layers: np.ndarray, precision: int) -> int:
    """The precision that was asked for: tensor cores have them all."""
    return precision


def _triton(layers: np.ndarray) -> ModuleType:
    """The engine of the networks that are too large for this one."""
    if _cuda.device() == "cuda":
        return import_module("fastsmc.kernels.engine")
    weights = sum(Layer(*map(int, row)).num_params for row in layers)
    raise NoRoomError(f"the cuda engine has no room for {len(layers)} layers of {weights} weights in a block")


def _rows(array: Tensor) -> tuple[int, int]:
    """How many rows [..., n] there are, and n."""
    n = array.shape[-1]
    return array.numel() // n, n


def _of_type(name: str, like: Tensor) -> Callable[..., None]:
    return getattr(_cuda, f"{name}_{str(like.dtype).removeprefix('torch.')}")


def _checked(function: Callable[..., None], *arguments: Any) -> Tensor:
    """Queue a function that takes a status, and return that."""
    like = next(a for a in arguments if isinstance(a, Tensor))
    status = torch.full((1,), FINE, dtype=torch.int64, device=like.device)
    _queue(function, *arguments, status)
    return status


@on_its_device
def _queue(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of the module on the current stream of the device of its tensors."""
    device = next(a for a in arguments if isinstance(a, Tensor)).device
    kept = []

    def memory(size: int) -> int:
        kept.append(torch.empty(size, dtype=torch.uint8, device=device))
        return kept[-1].data_ptr()

    stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else None
    function(stream, memory, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
