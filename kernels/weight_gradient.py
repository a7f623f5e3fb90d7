"""Weight gradients of one dense layer: a product over the batch, for every particle.

    dW[p, n, k] = sum over b of delta[p, b, n] h[p, b, k]

The bias is the weight of one more input that is always 1, so that its gradient is column ``inputs`` of the product. A
program sums one tile [n, k] of one particle over one slice of the batch, in order; neighbours in the grid share deltas.
Each tile of deltas is read once for every tile of k, each tile of h once for every tile of n, both through the caches
and straight into shared memory while the tiles before are multiplied.

Where one slice is the whole batch, the tile may be used for a leapfrog step as it leaves the accumulators: momentum and
position are read and written once, and the gradient is never written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastsmc.kernels.activations import value_of
from fastsmc.kernels.build import CAPABILITIES, PRODUCTS, Build
from fastsmc.kernels.dot import MEDIUM, aligned, load_parts, parts_in, parts_of, product
from fastsmc.kernels.sizes import cdiv, padded
from fastsmc.kernels.tiles import Tiles, choose_tiles, power_of_two
from fastsmc.kernels.update import Update, kick_and_drift

FUSED_COLUMNS = 32
"""Of a tile that moves weights: position and momentum are in registers beside the sums."""


@triton.jit
def gradient_tile(
    samples,
    num_particles,
    slice_samples,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """A program's particle and slice, the rows n and columns k of its tile, and the slice's first sample and length."""
    K_TILES: tl.constexpr = (COLUMNS + K - 1) // K
    N_TILES: tl.constexpr = (ROWS + N - 1) // N
    tile = tl.program_id(0) % (K_TILES * N_TILES)
    particle = (tl.program_id(0) // (K_TILES * N_TILES) % num_particles).to(tl.int64)
    part = (tl.program_id(0) // (K_TILES * N_TILES) // num_particles).to(tl.int64)
    n = tile // K_TILES * N + tl.arange(0, N)
    k = tile % K_TILES * K + tl.arange(0, K)
    begin = part * slice_samples
    return particle, part, n, k, begin, tl.minimum(samples - begin, slice_samples).to(tl.int32)


@triton.jit
def _finish(total, at, mask, sums, BEGIN: tl.constexpr, row, state):
    """Write the gradient of a layer's weights ``at``, or use it for a step."""
    if sums is not None:
        tl.store(sums + at, total, mask=mask)
    if state[1] is not None:
        kick_and_drift(total, BEGIN + at, mask, row, *state)


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
    H_PLANE: tl.constexpr,
    DELTA_PLANE: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BEGIN: tl.constexpr,
    DIM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of one layer of one particle over one slice.

    ``h_rows`` is the samples between two particles' inputs, 0 if they share them. Without ``sums`` the gradient is not
    written, without ``momentum`` there is no update.
    """
    COLUMNS: tl.constexpr = INPUTS + 1  # the last for the bias
    DELTA_STRIDE: tl.constexpr = (3 - PRECISION) * DELTA_PLANE
    particle, part, n, k, begin, count = gradient_tile(samples, num_particles, slice_samples, OUTPUTS, COLUMNS, N, K)
    # loads go to a multiple of 16 entries, as rows do, so that 16 bytes are copied at a time; nothing comes of the rest
    THERE: tl.constexpr = aligned(OUTPUTS)
    H_THERE: tl.constexpr = H_PLANE or min(aligned(INPUTS), H_STRIDE)
    h += (particle * h_rows + begin) * H_STRIDE
    deltas += (particle * samples + begin) * DELTA_STRIDE

    total = tl.zeros((N, K), tl.float32)
    for first in range(0, count, DEPTH):
        b = first + tl.arange(0, DEPTH)
        inside = b < count
        at = deltas + b[None, :] * DELTA_STRIDE + n[:, None]
        d = load_parts(at, (n < THERE)[:, None] & inside[None, :], DELTA_PLANE, PRECISION)
        at, mask = h + b[:, None] * H_STRIDE + k[None, :], inside[:, None] & (k < H_THERE)[None, :]
        if H_PLANE:  # its column of ones is there
            v = load_parts(at, mask, H_PLANE, PRECISION)
        else:
            v = value_of(tl.load(at, mask=mask, other=0), ACTIVATION)
            v = parts_of(tl.where((k == INPUTS)[None, :], tl.full((), 1, v.dtype), v), PRECISION)
        total = product(d, v, total, PRECISION)

    if sums is not None:
        sums += (part * num_particles + particle) * DIM + BEGIN
    weights, last = n[:, None] * INPUTS + k[None, :], tl.broadcast_to(INPUTS * OUTPUTS + n[:, None], (N, K))
    rows = (n < OUTPUTS)[:, None]
    state = (particles, momentum, prior_precision, scale, plan)
    _finish(total, weights, rows & (k < INPUTS)[None, :], sums, BEGIN, particle * DIM, state)
    K_TILES: tl.constexpr = (COLUMNS + K - 1) // K
    if tl.program_id(0) % K_TILES == K_TILES - 1:  # biases, behind all weights
        _finish(total, last, rows & (k == INPUTS)[None, :], sums, BEGIN, particle * DIM, state)


class Weights(NamedTuple):
    """A layer's weights in a particle of length ``dim``: [outputs, inputs] at ``begin``, then the bias."""

    inputs: int
    outputs: int
    begin: int
    dim: int


def weight_gradient(
    h: torch.Tensor,
    activation: int,
    plane: int,
    deltas: torch.Tensor,
    weights: Weights,
    tiles: Tiles,
    precision: int,
    sums: torch.Tensor | None = None,
    update: Update | None = None,
) -> None:
    """Sum the gradient of a layer over slices of a batch, as ``tiles`` cut it.

    Parameters
    ----------
    h : [B, inputs] or [P, B, inputs]
        What is kept of the layer before, whose ``activation`` is yet to be applied, or, where there is a ``plane``, the
        parts of x; the last dimension may be part of a longer row.
    deltas : bfloat16 [P, B, parts * outputs]
        The parts of the gradient with respect to the pre-activations, likewise.
    sums : float32 [slices, P, dim], optional
        Where the gradient goes.
    update
        What is done with it, where there is one slice.
    """
    P, B = deltas.shape[:2]
    n, k, depth, warps, stages = _tiles(weights, precision, tiles.columns if update is None else FUSED_COLUMNS)
    programs = cdiv(weights.outputs, n) * cdiv(weights.inputs + 1, k)
    _weight_gradient_kernel[(programs * P * cdiv(B, tiles.slice),)](
        h,
        deltas,
        sums,
        *(update or (None,) * 5),
        B,
        P,
        tiles.slice,
        0 if h.ndim == 2 else h.stride(0) // h.stride(1),
        H_STRIDE=h.stride(-2),
        H_PLANE=plane,
        DELTA_PLANE=deltas.stride(1) // parts_in(precision),
        INPUTS=weights.inputs,
        OUTPUTS=weights.outputs,
        BEGIN=weights.begin,
        DIM=weights.dim,
        ACTIVATION=activation,
        N=n,
        K=k,
        DEPTH=depth,
        PRECISION=precision,
        num_warps=warps,
        num_stages=stages,
        **PRODUCTS,
    )


def _tiles(weights: Weights, precision: int, columns: int) -> tuple[int, int, int, int, int]:
    """Units, inputs and samples of a tile, warps and stages: such that accumulators and update stay in registers."""
    n, k = power_of_two(weights.outputs, 128), power_of_two(weights.inputs + 1, columns)
    depth, stages = ((32, 2), (32, 3), (64, 3))[precision]
    return n, k, depth, 8 if n == 128 else 4, stages


def _build(weights: Weights, precision: int, fused: bool, capability: int, registers: int, shared: int) -> Build:
    """Of the first layer, or of one behind a tanh, its gradient written, or used for a step."""
    first = weights.begin == 0
    kind = "*bf16" if first or precision == MEDIUM.value else "*fp32"
    used = ("particles", "momentum", "prior_precision", "plan") if fused else ("sums",)
    signature = {"h": kind, "deltas": "*bf16"} | dict.fromkeys(used, "*fp32")
    signature |= dict.fromkeys(("samples", "num_particles", "slice_samples", "h_rows"), "i32")
    columns = FUSED_COLUMNS if fused else choose_tiles(precision, 1000, f"{capability / 10}").columns
    n, k, depth, warps, stages = _tiles(weights, precision, columns)
    pointers = ("sums", "particles", "momentum", "prior_precision", "scale", "plan")
    constants = dict.fromkeys(name for name in pointers if name not in used)
    plane = padded(weights.inputs + 1) if first else 0
    constants |= {"H_STRIDE": plane * parts_in(precision) or 112, "H_PLANE": plane, "DELTA_PLANE": 128}
    constants |= {"INPUTS": weights.inputs, "OUTPUTS": weights.outputs, "BEGIN": weights.begin, "DIM": weights.dim}
    constants |= {"ACTIVATION": 0 if first else 2, "N": n, "K": k, "DEPTH": depth}
    constants |= {"PRECISION": precision}
    return Build(
        f"weight {'step' if fused else 'gradient'} of {weights.inputs}-{weights.outputs}, precision {precision}"
        f", sm_{capability}",
        _weight_gradient_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        warps,
        stages,
        registers,
        shared,
        tensor_cores=True,
        options=PRODUCTS,
        capabilities=(capability,),
    )


# A layer, registers where its gradient is written and where it is used, and shared memory, in any precision, by
# Triton 3.6 and 3.9; of small layers in the default one.
_MEANS = (
    (Weights(784, 100, 0, 79_510), 248, 152, 147_456),
    (Weights(100, 100, 78_500, 89_610), 240, 152, 98_304),
    (Weights(100, 10, 78_500, 79_510), 136, 104, 53_248),
    (Weights(13, 50, 0, 751), 112, 112, 30_720),
    (Weights(50, 1, 700, 751), 128, 96, 26_624),
    (Weights(64, 32, 0, 2_410), 176, 152, 24_576),
)

BUILDS = tuple(
    _build(weights, precision, fused, capability, registers, shared)
    for weights, written, used, shared in _MEANS
    for precision in (range(3) if weights.inputs >= 100 else range(1))
    for fused, registers in ((False, written), (True, used))
    for capability in CAPABILITIES
)
