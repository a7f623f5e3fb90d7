"""Weight gradients of one dense layer: a product over the batch, for every particle.

    dW[p, n, k] = sum over b of delta[p, b, n] h[p, b, k]

The bias is the weight of one more input that is always 1, so that its gradient is column ``inputs`` of the product. A
program sums one tile [n, k] of one particle over one slice of the batch, in order; neighbours in the grid share deltas.
Each tile of deltas is read once for every tile of k, each tile of h once for every tile of n, both through the caches.

Where one slice is the whole batch, the tile may be used for a leapfrog step as it leaves the accumulators: momentum and
position are read and written once, and the gradient is never written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastsmc.backends import INTERPRETED
from fastsmc.kernels.activations import value_of
from fastsmc.kernels.build import PRODUCTS, Build
from fastsmc.kernels.dot import MEDIUM, product
from fastsmc.kernels.update import Update, kick_and_drift


@triton.jit
def _weight_gradient_kernel(
    h,
    deltas,
    sums,
    particles,
    momentum,
    prior_precision,
    scale,
    plan,
    samples,
    num_particles,
    slice_samples,
    h_rows,
    H_STRIDE: tl.constexpr,
    DELTA_STRIDE: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BEGIN: tl.constexpr,
    DIM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of one layer of one particle over one slice.

    ``h_rows`` is the samples between two particles' inputs, 0 if they share them. Without ``sums`` the gradient is not
    written, without ``momentum`` there is no update.
    """
    K_TILES: tl.constexpr = (INPUTS + K) // K  # one column more, for the bias
    N_TILES: tl.constexpr = (OUTPUTS + N - 1) // N
    tile = tl.program_id(0) % (K_TILES * N_TILES)
    particle = ((tl.program_id(0) // (K_TILES * N_TILES)) % num_particles).to(tl.int64)
    part = (tl.program_id(0) // (K_TILES * N_TILES) // num_particles).to(tl.int64)
    n = (tile // K_TILES) * N + tl.arange(0, N)
    k = (tile % K_TILES) * K + tl.arange(0, K)
    begin = part * slice_samples
    count = tl.minimum(samples - begin, slice_samples).to(tl.int32)
    h += (particle * h_rows + begin) * H_STRIDE
    deltas += (particle * samples + begin) * DELTA_STRIDE

    total = tl.zeros((N, K), tl.float32)
    for first in range(0, count, DEPTH):
        b = first + tl.arange(0, DEPTH)
        inside = (b < count)[:, None]
        d = tl.load(deltas + b[:, None] * DELTA_STRIDE + n[None, :], mask=inside & (n < OUTPUTS)[None, :], other=0)
        v = tl.load(h + b[:, None] * H_STRIDE + k[None, :], mask=inside & (k < INPUTS)[None, :], other=0)
        v = value_of(v, ACTIVATION)
        v = tl.where((k == INPUTS)[None, :], tl.full((), 1, v.dtype), v)
        total = product(tl.trans(d), v, total, PRECISION, UPCAST)

    mask = (n < OUTPUTS)[:, None] & (k <= INPUTS)[None, :]
    at = tl.where((k < INPUTS)[None, :], n[:, None] * INPUTS + k[None, :], OUTPUTS * INPUTS + n[:, None]) + BEGIN
    if sums is not None:
        tl.store(sums + (part * num_particles + particle) * DIM + at, total, mask=mask)
    if momentum is not None:
        kick_and_drift(total, at, mask, particle * DIM, particles, momentum, prior_precision, scale, plan)


class Weights(NamedTuple):
    """A layer's weights in a particle of length ``dim``: [outputs, inputs] at ``begin``, then the bias."""

    inputs: int
    outputs: int
    begin: int
    dim: int


def weight_gradient(
    h: torch.Tensor,
    activation: int,
    deltas: torch.Tensor,
    weights: Weights,
    slice_samples: int,
    precision: int,
    sums: torch.Tensor | None = None,
    update: Update | None = None,
) -> None:
    """Sum the gradient of a layer over slices of a batch.

    Parameters
    ----------
    h : [B, inputs] or [P, B, inputs]
        What is kept of the layer before, whose ``activation`` is yet to be applied; the last dimension may be part of a
        longer row.
    deltas : [P, B, outputs]
        The gradient with respect to the pre-activations, likewise.
    sums : float32 [slices, P, dim], optional
        Where the gradient goes.
    update
        What is done with it, where there is one slice.
    """
    P, B = deltas.shape[:2]
    n, k, depth, warps, stages = _tiles(weights, precision)
    programs = triton.cdiv(weights.outputs, n) * triton.cdiv(weights.inputs + 1, k)
    _weight_gradient_kernel[(programs * P * triton.cdiv(B, slice_samples),)](
        h,
        deltas,
        sums,
        *(update or (None,) * 5),
        B,
        P,
        slice_samples,
        0 if h.ndim == 2 else h.stride(0) // h.stride(1),
        H_STRIDE=h.stride(-2),
        DELTA_STRIDE=deltas.stride(1),
        INPUTS=weights.inputs,
        OUTPUTS=weights.outputs,
        BEGIN=weights.begin,
        DIM=weights.dim,
        ACTIVATION=activation,
        N=n,
        K=k,
        DEPTH=depth,
        PRECISION=precision,
        UPCAST=INTERPRETED,
        num_warps=warps,
        num_stages=stages,
        **PRODUCTS,
    )


def _tiles(weights: Weights, precision: int) -> tuple[int, int, int, int, int]:
    """Units, inputs and samples of a tile, warps and stages: such that accumulators and update stay in registers."""
    n = max(16, min(64, triton.next_power_of_2(weights.outputs)))
    k = max(16, min(64, triton.next_power_of_2(weights.inputs + 1)))
    return n, k, 64 if precision == MEDIUM.value else 32, 8 if n * k >= 4096 else 4, 3


def _build(weights: Weights, precision: int, fused: bool, registers: int, shared: int) -> Build:
    """Of a layer behind a tanh, its gradient written, or used for a step."""
    kind = "*bf16" if precision == MEDIUM.value else "*fp32"
    used = ("particles", "momentum", "prior_precision", "plan") if fused else ("sums",)
    signature = {"h": kind, "deltas": kind} | dict.fromkeys(used, "*fp32")
    signature |= dict.fromkeys(("samples", "num_particles", "slice_samples", "h_rows"), "i32")
    n, k, depth, warps, stages = _tiles(weights, precision)
    pointers = ("sums", "particles", "momentum", "prior_precision", "scale", "plan")
    constants = dict.fromkeys(name for name in pointers if name not in used)
    constants |= {"H_STRIDE": 112, "DELTA_STRIDE": 128, "INPUTS": weights.inputs, "OUTPUTS": weights.outputs}
    constants |= {"BEGIN": weights.begin, "DIM": weights.dim, "ACTIVATION": 2, "N": n, "K": k, "DEPTH": depth}
    constants |= {"PRECISION": precision, "UPCAST": False}
    return Build(
        f"weight {'step' if fused else 'gradient'} of {weights.inputs}-{weights.outputs}, precision {precision}",
        _weight_gradient_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        warps,
        stages,
        registers,
        shared,
        tensor_cores=True,
        options=PRODUCTS,
    )


# A layer, registers where its gradient is written and where it is used, and shared memory, in any precision, by
# Triton 3.6 and 3.9.
_MEANS = (
    (Weights(784, 100, 0, 79_510), 200, 200, 49_152),
    (Weights(100, 100, 78_500, 89_610), 208, 200, 49_152),
    (Weights(100, 10, 78_500, 79_510), 120, 112, 36_864),
    (Weights(13, 50, 0, 751), 120, 120, 26_624),
    (Weights(50, 1, 700, 751), 128, 128, 36_864),
    (Weights(64, 32, 0, 2_410), 168, 168, 40_960),
)

BUILDS = tuple(
    _build(weights, precision, fused, registers, shared)
    for weights, written, used, shared in _MEANS
    for precision in range(3)
    for fused, registers in ((False, written), (True, used))
)
