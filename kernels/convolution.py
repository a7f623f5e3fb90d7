"""Convolutions of stride 1 with zero padding, their activation and max-pool, for all particles over one batch.

Each is a product of matrices whose large operand is gathered as it is loaded. Its rows are pixels, of all samples one
after the other, its columns the terms of a filter, k = (channel, ky, kx).

    forward           z[m, n]      = sum over k of patch[m, k] W[n, k]
    weight gradient   dW[n, k]     = sum over m of delta[m, n] patch[m, k]
    input gradient    dh[m, c]     = sum over (n, ky, kx) of delta[m - (ky, kx), n] W[n, c, ky, kx]

Forward, a program makes the pooled pixels of a tile: a product for each place in their squares, and of those the
largest. Kept are what `fastsmc.kernels.activations` keeps of the largest, and its place, a byte. So the gradient with
respect to the pre-activations, delta, is in memory for pooled pixels only: a pixel has that of its square if it was the
largest, zero otherwise, as loads find out.

Images of a particle are [samples, channels, height, width] without gaps; the first layer's are the same for all
particles. Memory traffic is that of pooled pixels once each way, and of the images once for each layer and direction:
patches overlap in the caches.

Weight gradients are summed over slices of the batch, for a convolution has few weights and many pixels: a program takes
one tile [n, k] of one particle over one slice, in order, with the bias as a term that is always 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fastsmc.kernels.activations import kept_of, times_slope, value_of
from fastsmc.kernels.build import PRODUCTS, Build
from fastsmc.kernels.dot import MEDIUM, parts_of, product, store
from fastsmc.kernels.sizes import cdiv, next_power_of_2
from fastsmc.kernels.update import Update, kick_and_drift
from fastsmc.kernels.weight_gradient import gradient_tile
from fastsmc.networks import Layer


@triton.jit
def _pixels(m, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Sample, row and column of pixels that are counted through all samples."""
    return m // (HEIGHT * WIDTH), m // WIDTH % HEIGHT, m % WIDTH


@triton.jit
def _tile(
    samples,
    tiles,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
):
    """A program's particle, channels and pixels: samples from ``begin`` on, rows, columns, and whether they exist."""
    N_TILES: tl.constexpr = (CHANNELS + N - 1) // N
    channel = tl.program_id(0) % N_TILES * N + tl.arange(0, N)
    particle = (tl.program_id(0) // (N_TILES * tiles)).to(tl.int64)
    first = tl.program_id(0) // N_TILES % tiles * ROWS
    begin = first // (HEIGHT * WIDTH)
    sample, y, x = _pixels(first - begin * (HEIGHT * WIDTH) + tl.arange(0, ROWS), HEIGHT, WIDTH)
    return particle, channel, begin, sample, y, x, sample < samples - begin


@triton.jit
def _patches(images, sample, y, x, k, inside, SHAPE: tl.constexpr, ACTIVATION: tl.constexpr):
    """What terms k of a filter meet at pixels (y, x) before pooling; zero in the border and outside."""
    CHANNELS: tl.constexpr = SHAPE[0]
    HEIGHT: tl.constexpr = SHAPE[1]
    WIDTH: tl.constexpr = SHAPE[2]
    KERNEL: tl.constexpr = SHAPE[4]
    PADDING: tl.constexpr = SHAPE[5]
    SQUARE: tl.constexpr = KERNEL * KERNEL
    ky, kx = k % SQUARE // KERNEL, k % KERNEL
    top, left = y - PADDING, x - PADDING
    mask = inside[:, None] & (k < CHANNELS * SQUARE)[None, :]
    if PADDING > 0:
        row, column = top[:, None] + ky[None, :], left[:, None] + kx[None, :]
        mask = mask & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    corner = sample * (CHANNELS * HEIGHT * WIDTH) + top * WIDTH + left
    term = k // SQUARE * (HEIGHT * WIDTH) + ky * WIDTH + kx
    return value_of(tl.load(images + corner[:, None] + term[None, :], mask=mask, other=0), ACTIVATION)


@triton.jit
def _forward_kernel(
    images,
    particles,
    kept,
    places,
    samples,
    tiles,
    image_rows,
    SHAPE: tl.constexpr,
    DIM: tl.constexpr,
    INPUT_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of pooled pixels of one particle, for N output channels.

    ``image_rows`` is the samples between two particles' images, 0 if they share them.
    """
    INPUTS: tl.constexpr = SHAPE[0] * SHAPE[1] * SHAPE[2]
    TERMS: tl.constexpr = SHAPE[0] * SHAPE[4] * SHAPE[4]
    OUTPUTS: tl.constexpr = SHAPE[3]
    POOL: tl.constexpr = SHAPE[6]
    PIXELS: tl.constexpr = SHAPE[7] * SHAPE[8]
    particle, n, begin, sample, y, x, inside = _tile(samples, tiles, OUTPUTS, SHAPE[7], SHAPE[8], ROWS, N)
    images += (particle * image_rows + begin) * INPUTS
    weight = particles + particle * DIM + SHAPE[9]
    bias = tl.load(weight + OUTPUTS * TERMS + n, mask=n < OUTPUTS, other=0)

    best = tl.full((ROWS, N), float("-inf"), tl.float32)
    largest = best
    place = tl.zeros((ROWS, N), tl.int32)
    for position in range(POOL * POOL):
        z = tl.zeros((ROWS, N), tl.float32)
        for start in range(0, TERMS, DEPTH):
            k = start + tl.arange(0, DEPTH)
            h = _patches(
                images, sample, y * POOL + position // POOL, x * POOL + position % POOL, k, inside, SHAPE,
                INPUT_ACTIVATION,
            )  # fmt: skip
            mask = (k < TERMS)[:, None] & (n < OUTPUTS)[None, :]
            w = tl.load(weight + n[None, :] * TERMS + k[:, None], mask=mask, other=0)
            z = product(parts_of(h, PRECISION), parts_of(w, PRECISION), z, PRECISION)
        z = kept_of(z + bias[None, :], ACTIVATION)
        value = value_of(z, ACTIVATION)
        larger = ~((largest >= value) | (largest != largest))  # the first NaN is the largest
        best = tl.where(larger, z, best)
        largest = tl.where(larger, value, largest)
        place = tl.where(larger, position, place)

    mask = inside[:, None] & (n < OUTPUTS)[None, :]
    at = (particle * samples + begin) * (OUTPUTS * PIXELS)
    at += (sample * (OUTPUTS * PIXELS) + y * SHAPE[8] + x)[:, None] + n[None, :] * PIXELS
    store(kept + at, best, mask)
    if places is not None:
        tl.store(places + at, place.to(tl.uint8), mask=mask)


@triton.jit
def _input_gradient_kernel(
    deltas,
    places,
    particles,
    kept,
    out,
    samples,
    tiles,
    SHAPE: tl.constexpr,
    DIM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The deltas of the layer before at a tile of its pixels; ``kept`` and ``ACTIVATION`` are of that layer."""
    CHANNELS: tl.constexpr = SHAPE[0]
    IMAGE: tl.constexpr = SHAPE[1] * SHAPE[2]
    OUTPUTS: tl.constexpr = SHAPE[3]
    KERNEL: tl.constexpr = SHAPE[4]
    SQUARE: tl.constexpr = KERNEL * KERNEL
    PADDING: tl.constexpr = SHAPE[5]
    POOL: tl.constexpr = SHAPE[6]
    WIDTH: tl.constexpr = SHAPE[8]
    PIXELS: tl.constexpr = SHAPE[7] * WIDTH
    particle, c, begin, sample, y, x, inside = _tile(samples, tiles, CHANNELS, SHAPE[1], SHAPE[2], ROWS, N)
    row = particle * samples + begin
    weight = particles + particle * DIM + SHAPE[9]
    deltas += row * (OUTPUTS * PIXELS)
    if places is not None:
        places += row * (OUTPUTS * PIXELS)

    total = tl.zeros((ROWS, N), tl.float32)
    for start in range(0, OUTPUTS * SQUARE, DEPTH):
        k = start + tl.arange(0, DEPTH)
        n, term = k // SQUARE, k % SQUARE
        i = y[:, None] + PADDING - (term // KERNEL)[None, :]
        # Triton takes a remainder of even remainders for even, and the mask of a pixel for its neighbour's (its issue
        # 11544); that of odd ones needs fewer registers
        j = x[:, None] + PADDING - ((k if SQUARE % 2 == 0 else term) % KERNEL)[None, :]
        mask = inside[:, None] & (n < OUTPUTS)[None, :]
        mask = mask & (i >= 0) & (i < SHAPE[7] * POOL) & (j >= 0) & (j < WIDTH * POOL)
        at = sample[:, None] * (OUTPUTS * PIXELS) + n[None, :] * PIXELS + i // POOL * WIDTH + j // POOL
        d = tl.load(deltas + at, mask=mask, other=0)
        if places is not None:
            place = tl.load(places + at, mask=mask, other=0).to(tl.int32)
            d = tl.where(place == i % POOL * POOL + j % POOL, d, tl.zeros_like(d))
        w = tl.load(
            weight + (n * (CHANNELS * SQUARE) + term)[:, None] + c[None, :] * SQUARE,
            mask=(n < OUTPUTS)[:, None] & (c < CHANNELS)[None, :],
            other=0,
        )
        total = product(parts_of(d, PRECISION), parts_of(w, PRECISION), total, PRECISION)

    mask = inside[:, None] & (c < CHANNELS)[None, :]
    at = row * (CHANNELS * IMAGE)
    at += (sample * (CHANNELS * IMAGE) + y * SHAPE[2] + x)[:, None] + c[None, :] * IMAGE
    h = tl.load(kept + at, mask=mask, other=0)
    store(out + at, times_slope(total, h, ACTIVATION), mask)


@triton.jit
def _weight_gradient_kernel(
    images,
    deltas,
    places,
    sums,
    particles,
    momentum,
    prior_precision,
    scale,
    plan,
    samples,
    num_particles,
    slice_samples,
    image_rows,
    sums_dim,
    SHAPE: tl.constexpr,
    DIM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of one particle's filters over one slice.

    Without ``sums``, rows of length ``sums_dim``, the gradient is not written; without ``momentum`` there is no update.
    """
    INPUTS: tl.constexpr = SHAPE[0] * SHAPE[1] * SHAPE[2]
    TERMS: tl.constexpr = SHAPE[0] * SHAPE[4] * SHAPE[4]
    OUTPUTS: tl.constexpr = SHAPE[3]
    POOL: tl.constexpr = SHAPE[6]
    PIXELS: tl.constexpr = SHAPE[7] * SHAPE[8]
    COLUMNS: tl.constexpr = TERMS + 1  # the last for the bias
    particle, part, n, k, begin, count = gradient_tile(samples, num_particles, slice_samples, OUTPUTS, COLUMNS, N, K)
    images += (particle * image_rows + begin) * INPUTS
    row = (particle * samples + begin) * (OUTPUTS * PIXELS)
    deltas += row
    if places is not None:
        places += row

    total = tl.zeros((N, K), tl.float32)
    pixels = count * PIXELS
    for first in range(0, pixels, DEPTH):
        m = first + tl.arange(0, DEPTH)
        inside = m < pixels
        sample, y, x = _pixels(m, SHAPE[7], SHAPE[8])
        at = (sample * (OUTPUTS * PIXELS) + y * SHAPE[8] + x)[None, :] + n[:, None] * PIXELS
        mask = inside[None, :] & (n < OUTPUTS)[:, None]
        d = tl.load(deltas + at, mask=mask, other=0)
        if places is not None:
            place = tl.load(places + at, mask=mask, other=0).to(tl.int32)
        for position in range(POOL * POOL):
            v = _patches(
                images, sample, y * POOL + position // POOL, x * POOL + position % POOL, k, inside, SHAPE, ACTIVATION
            )
            v = tl.where((k == TERMS)[None, :], tl.full((), 1, v.dtype), v)
            here = d if places is None else tl.where(place == position, d, tl.zeros_like(d))
            total = product(parts_of(here, PRECISION), parts_of(v, PRECISION), total, PRECISION)

    mask = (n < OUTPUTS)[:, None] & (k <= TERMS)[None, :]
    at = tl.where((k < TERMS)[None, :], n[:, None] * TERMS + k[None, :], OUTPUTS * TERMS + n[:, None]) + SHAPE[9]
    if sums is not None:
        tl.store(sums + (part * num_particles + particle) * sums_dim + at, total, mask=mask)
    if momentum is not None:
        kick_and_drift(total, at, mask, particle * DIM, particles, momentum, prior_precision, scale, plan)


class Convolution(NamedTuple):
    """A layer, and where its weights [outputs, channels, kernel, kernel], and then its bias, begin in a particle."""

    layer: Layer
    begin: int
    dim: int

    @property
    def terms(self) -> int:
        """Of a filter, without the bias."""
        return self.layer.in_channels * self.layer.kernel**2

    @property
    def pixels(self) -> int:
        """Of a channel, after pooling."""
        return self.layer.out_height * self.layer.out_width

    @property
    def end(self) -> int:
        """Where the next layer begins."""
        return self.begin + (self.terms + 1) * self.layer.out_channels

    @property
    def shape(self) -> tuple[int, ...]:
        """What kernels know of it, by position."""
        _, _, channels, height, width, outputs, kernel, padding, pool = self.layer
        pooled = self.layer.out_height, self.layer.out_width
        return channels, height, width, outputs, kernel, padding, pool, *pooled, self.begin


class Features(NamedTuple):
    """Of one convolution, for some particles and samples [P, B, outputs]: what is kept, the places, and the deltas.

    There are no places where there is no pool, and no deltas where no gradient is wanted.
    """

    kept: torch.Tensor
    places: torch.Tensor | None
    deltas: torch.Tensor | None

    @classmethod
    def empty(
        cls, convolution: Convolution, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, with_grad: bool
    ) -> Features:
        """To be filled, for so many particles and samples."""
        size = (*shape, convolution.layer.num_outputs)
        kept, deltas = (torch.empty(size, dtype=dtype, device=device) if used else None for used in (True, with_grad))
        pooled = with_grad and convolution.layer.pool > 1
        return cls(kept, torch.empty(size, dtype=torch.uint8, device=device) if pooled else None, deltas)


def bytes_per_sample(convolution: Convolution, dtype: torch.dtype) -> int:
    """Of features with a gradient."""
    return convolution.layer.num_outputs * (2 * dtype.itemsize + (convolution.layer.pool > 1))


def forward(
    convolution: Convolution,
    images: torch.Tensor,
    input_activation: int,
    particles: torch.Tensor,
    features: Features,
    precision: int,
) -> None:
    """Fill what is kept and the places.

    Parameters
    ----------
    images : [B, inputs] or [P, B, inputs]
        What is kept of the layer before, whose ``input_activation`` is yet to be applied; B may be a part of more.
    particles : float32 [P, dim]
        One for each of the features.
    """
    P, B = features.kept.shape[:2]
    rows, n, depth, warps = _tiles(convolution.layer.out_channels)
    tiles = cdiv(B * convolution.pixels, rows)
    _forward_kernel[(P * tiles * cdiv(convolution.layer.out_channels, n),)](
        images,
        particles,
        features.kept,
        features.places,
        B,
        tiles,
        _rows_between(images),
        SHAPE=convolution.shape,
        DIM=convolution.dim,
        INPUT_ACTIVATION=input_activation,
        ACTIVATION=convolution.layer.activation,
        ROWS=rows,
        N=n,
        DEPTH=depth,
        PRECISION=precision,
        num_warps=warps,
        num_stages=_STAGES,
        **PRODUCTS,
    )


def input_gradient(
    convolution: Convolution,
    features: Features,
    particles: torch.Tensor,
    before: Convolution,
    out: Features,
    precision: int,
) -> None:
    """Fill the deltas of the convolution before."""
    P, B = features.deltas.shape[:2]
    channels = convolution.layer.in_channels
    rows, n, depth, warps = _tiles(channels)
    tiles = cdiv(B * before.pixels, rows)
    _input_gradient_kernel[(P * tiles * cdiv(channels, n),)](
        features.deltas,
        features.places,
        particles,
        out.kept,
        out.deltas,
        B,
        tiles,
        SHAPE=convolution.shape,
        DIM=convolution.dim,
        ACTIVATION=before.layer.activation,
        ROWS=rows,
        N=n,
        DEPTH=depth,
        PRECISION=precision,
        num_warps=warps,
        num_stages=_STAGES,
        **PRODUCTS,
    )


def weight_gradient(
    convolution: Convolution,
    images: torch.Tensor,
    input_activation: int,
    features: Features,
    slice_samples: int,
    precision: int,
    sums: torch.Tensor | None = None,
    update: Update | None = None,
) -> None:
    """Sum the gradient of a layer over slices of a batch, into ``sums`` [slices, P, ..] at the place of its weights.

    The rest is as in `fastsmc.kernels.weight_gradient`.
    """
    P, B = features.deltas.shape[:2]
    n, k, depth, warps = _weight_tiles(convolution)
    programs = cdiv(convolution.layer.out_channels, n) * cdiv(convolution.terms + 1, k)
    _weight_gradient_kernel[(programs * P * cdiv(B, slice_samples),)](
        images,
        features.deltas,
        features.places,
        sums,
        *(update or (None,) * 5),
        B,
        P,
        slice_samples,
        _rows_between(images),
        0 if sums is None else sums.stride(1),
        SHAPE=convolution.shape,
        DIM=convolution.dim,
        ACTIVATION=input_activation,
        N=n,
        K=k,
        DEPTH=depth,
        PRECISION=precision,
        num_warps=warps,
        num_stages=_STAGES,
        **PRODUCTS,
    )


def _rows_between(images: torch.Tensor) -> int:
    """Samples from one particle's images to the next's."""
    return 0 if images.ndim == 2 else images.stride(0) // images.stride(1)


_STAGES = 3


def _tiles(channels: int) -> tuple[int, int, int, int]:
    """Pixels, channels and terms of a tile, and warps: few terms, for every one of a patch has an address.

    Fewer pixels than Hopper's asynchronous products take: the assembler of CUDA 12.8 drops the first of these where a
    loop of pixels is short.
    """
    return 32, max(16, min(64, next_power_of_2(channels))), 16, 2


def _weight_tiles(convolution: Convolution) -> tuple[int, int, int, int]:
    """Channels, terms and pixels of a tile, and warps."""
    n = max(16, min(64, next_power_of_2(convolution.layer.out_channels)))
    k = max(16, min(64, next_power_of_2(convolution.terms + 1)))
    return n, k, 32, 8 if n * k == 4096 else 4


def _build(kernel: Any, name: str, absent: tuple[str, ...], precision: int, constants: dict, warps: int) -> Build:
    """Of a kernel of which some arguments are None; how wide the others are follows from their names."""
    numbers = ("samples", "tiles", "image_rows", "num_particles", "slice_samples", "sums_dim")
    halved = ("images", "kept", "deltas", "out") if precision == MEDIUM.value else ()
    kinds = dict.fromkeys(numbers, "i32") | dict.fromkeys(halved, "*bf16") | {"places": "*u8"}
    constants = dict.fromkeys(absent) | constants | {"PRECISION": precision}
    signature = {arg: "constexpr" if arg in constants else kinds.get(arg, "*fp32") for arg in kernel.arg_names}
    registers, shared = _MEANS[name.split(" of ")[0]][precision]
    return Build(
        f"{name}, precision {precision}",
        kernel,
        signature,
        constants,
        warps,
        _STAGES,
        registers,
        shared,
        True,
        PRODUCTS,
    )


def _builds(convolution: Convolution, name: str, before: int, precision: int) -> Iterator[Build]:
    """Of one layer of tanh units; the first has no input gradient."""
    channels, outputs, tanh = convolution.layer.in_channels, convolution.layer.out_channels, 2
    common = {"SHAPE": convolution.shape, "DIM": convolution.dim}
    rows, n, depth, warps = _tiles(outputs)
    tile = {"ROWS": rows, "N": n, "DEPTH": depth, "INPUT_ACTIVATION": before, "ACTIVATION": tanh}
    yield _build(_forward_kernel, f"forward of {name}", (), precision, common | tile, warps)
    n, k, depth, warps = _weight_tiles(convolution)
    tile = {"N": n, "K": k, "DEPTH": depth, "ACTIVATION": before}
    for kind, absent in (
        ("gradient", ("particles", "momentum", "prior_precision", "scale", "plan")),
        ("step", ("sums", "scale")),
    ):
        yield _build(_weight_gradient_kernel, f"weight {kind} of {name}", absent, precision, common | tile, warps)
    if before:
        rows, n, depth, warps = _tiles(channels)
        tile = {"ROWS": rows, "N": n, "DEPTH": depth, "ACTIVATION": before}
        yield _build(_input_gradient_kernel, f"input gradient of {name}", (), precision, common | tile, warps)


# Registers and shared memory for each precision, the most of sm_80 and sm_90, by Triton 3.6 and 3.9.
_MEANS = {
    "forward": ((255, 6_144), (240, 6_144), (224, 3_072)),
    "weight gradient": ((240, 31_744), (216, 26_624), (208, 5_120)),
    "weight step": ((240, 31_744), (208, 26_624), (208, 5_120)),
    "input gradient": ((200, 9_216), (184, 8_192), (128, 3_072)),
}

BUILDS = tuple(
    build
    for precision in (0, 1, 2)
    for layer, begin, name, before in (
        (Layer(1, 2, 1, 28, 28, 6, 5, 2, 2), 0, "LeNet-5's first", 0),
        (Layer(1, 2, 6, 14, 14, 16, 5, 0, 2), 156, "LeNet-5's second", 2),
    )
    for build in _builds(Convolution(layer, begin, 61_706), name, before, precision)
)
