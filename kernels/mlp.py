"""Log-likelihoods, gradients and outputs of stacks of dense layers, for all particles over one batch.

One kernel takes a tile of samples through the whole network of one particle: forward, loss, and back to the gradients
with respect to the pre-activations of every layer, here called deltas. Weight gradients are left to a second kernel
(`fastsmc.kernels.weight_gradient`), for they are sums over the batch.

A layer's outputs are made one tile of units at a time, written to scratch, and read again by the next layer, through
the caches nearest to the processor: so no width has a limit. In scratch a sample of a particle has two rows, one of
what is kept of the hidden layers (`fastsmc.kernels.activations`), one of deltas, each layer beginning at a multiple of
16 entries; they are bfloat16 where the products are, since they are rounded there anyhow. Outputs are float32 always.

The tiles of a particle are neighbours in the grid: its weights come from memory once, and from the second cache for its
other tiles, while the rows of x, the same for all particles, stay in that cache. Memory traffic, then: weights once,
scratch once each way.

Large batches go in chunks of samples, and particles in groups, so that scratch has a limit. Only the groups depend on
how many particles there are: a particle alone has the same bits as among others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from fastsmc.kernels.activations import IDENTITY, kept_of, times_slope, value_of
from fastsmc.kernels.build import Build
from fastsmc.kernels.dot import INTERPRETED, MEDIUM, product, store
from fastsmc.kernels.losses import CATEGORICAL, FINE, GAUSSIAN, bad_labels, loss
from fastsmc.kernels.sums import add_slices
from fastsmc.kernels.update import Update
from fastsmc.kernels.weight_gradient import Weights, weight_gradient
from fastsmc.networks import Layer

_OPTIONS = {"maxnreg": 255}  # or the assembler spills a few values to make room for one more block


@triton.jit
def _forward(
    inputs,
    theta,
    out,
    row,
    inside,
    INPUT_STRIDE: tl.constexpr,
    INPUT_ACTIVATION: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    LAYER: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """What is kept of one layer, for a tile of samples, from what was kept of the layer before."""
    INPUTS: tl.constexpr = LAYER[0]
    OUTPUTS: tl.constexpr = LAYER[1]
    UNITS: tl.constexpr = LAYER[6]
    DEPTH: tl.constexpr = LAYER[7]
    weight = theta + LAYER[3]
    for first in range(0, OUTPUTS, UNITS):
        unit = first + tl.arange(0, UNITS)
        z = tl.zeros((row.shape[0], UNITS), tl.float32)
        for begin in range(0, INPUTS, DEPTH):
            k = begin + tl.arange(0, DEPTH)
            h = tl.load(
                inputs + row[:, None] * INPUT_STRIDE + k[None, :],
                mask=inside[:, None] & (k < INPUTS)[None, :],
                other=0,
            )
            w = tl.load(
                weight + unit[None, :] * INPUTS + k[:, None],
                mask=(k < INPUTS)[:, None] & (unit < OUTPUTS)[None, :],
                other=0,
            )
            z = product(value_of(h, INPUT_ACTIVATION), w, z, PRECISION, UPCAST)
        z += tl.load(weight + INPUTS * OUTPUTS + unit, mask=unit < OUTPUTS, other=0)[None, :]
        mask = inside[:, None] & (unit < OUTPUTS)[None, :]
        store(out + row[:, None] * OUT_STRIDE + unit[None, :], kept_of(z, LAYER[2]), mask, UPCAST)


@triton.jit
def _backward(
    deltas,
    theta,
    kept,
    out,
    row,
    inside,
    KEPT_STRIDE: tl.constexpr,
    DELTA_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UNITS: tl.constexpr,
    LAYER: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The deltas of the layer before, from those of one layer; ``ACTIVATION`` is the one between them."""
    INPUTS: tl.constexpr = LAYER[0]
    OUTPUTS: tl.constexpr = LAYER[1]
    DEPTH: tl.constexpr = LAYER[8]
    for first in range(0, INPUTS, UNITS):
        unit = first + tl.arange(0, UNITS)
        mask = inside[:, None] & (unit < INPUTS)[None, :]
        delta = tl.zeros((row.shape[0], UNITS), tl.float32)
        for begin in range(0, OUTPUTS, DEPTH):
            k = begin + tl.arange(0, DEPTH)
            d = tl.load(
                deltas + row[:, None] * DELTA_STRIDE + k[None, :],
                mask=inside[:, None] & (k < OUTPUTS)[None, :],
                other=0,
            )
            w = tl.load(
                theta + LAYER[3] + k[:, None] * INPUTS + unit[None, :],
                mask=(k < OUTPUTS)[:, None] & (unit < INPUTS)[None, :],
                other=0,
            )
            delta = product(d, w, delta, PRECISION, UPCAST)
        if ACTIVATION != IDENTITY:
            h = tl.load(kept + row[:, None] * KEPT_STRIDE + unit[None, :], mask=mask, other=0)
            delta = times_slope(delta, h, ACTIVATION)
        store(out + row[:, None] * OUT_STRIDE + unit[None, :], delta, mask, UPCAST)


@triton.jit
def _mlp_kernel(
    x,
    y,
    weights,
    particles,
    kept,
    deltas,
    outputs,
    input_grad,
    partials,
    status,
    samples,
    first_sample,
    tiles,
    x_rows,
    output_rows,
    num_particles,
    noise_precision,
    LAYERS: tl.constexpr,
    DIM: tl.constexpr,
    KEPT_STRIDE: tl.constexpr,
    DELTA_STRIDE: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    LIKELIHOOD: tl.constexpr,
    SAMPLES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of samples of one particle.

    ``x_rows`` and ``output_rows`` are the samples between two particles' inputs, 0 if they share them, and outputs.
    Without ``y`` only the outputs are made, without ``deltas`` no gradient, without ``input_grad`` none with respect to
    the inputs, which then are each particle's own.
    """
    LAST: tl.constexpr = len(LAYERS) - 1
    particle = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    row = tl.arange(0, SAMPLES)
    inside = row < samples - tile * SAMPLES
    begin = tile.to(tl.int64) * SAMPLES
    theta = particles + particle * DIM
    x += (particle * x_rows + begin) * LAYERS[0][0]
    outputs += (particle * output_rows + begin) * OUTPUT_STRIDE
    kept += (particle * samples + begin) * KEPT_STRIDE

    for k in tl.static_range(len(LAYERS)):
        _forward(
            x if k == 0 else kept + LAYERS[k - 1][4],
            theta,
            outputs if k == LAST else kept + LAYERS[k][4],
            row,
            inside,
            LAYERS[0][0] if k == 0 else KEPT_STRIDE,
            IDENTITY if k == 0 else LAYERS[k - 1][2],
            OUTPUT_STRIDE if k == LAST else KEPT_STRIDE,
            LAYERS[k],
            PRECISION,
            UPCAST,
        )
        tl.debug_barrier()  # what some threads wrote others read

    if y is not None:
        sample = begin + row
        if deltas is not None:
            deltas += (particle * samples + begin) * DELTA_STRIDE
        if weights is None:
            weight = tl.full((SAMPLES,), 1, tl.float32)
        else:
            weight = tl.load(weights + sample, mask=inside, other=0)
        value = loss(
            outputs,
            None if deltas is None else deltas + LAYERS[LAST][5],
            y,
            sample,
            row,
            inside,
            weight,
            noise_precision,
            LIKELIHOOD,
            LAYERS[LAST][1],
            OUTPUT_STRIDE,
            DELTA_STRIDE,
            LAYERS[LAST][6],
            UPCAST,
        )
        tl.store(partials + tile.to(tl.int64) * num_particles + particle, tl.sum(value.to(tl.float64), axis=0))
        if LIKELIHOOD == CATEGORICAL:
            worst = bad_labels(y, sample, first_sample, inside, LAYERS[LAST][1])
            tl.atomic_min(status, worst, mask=worst < FINE)

        if deltas is not None:
            for k in tl.static_range(LAST, 0, -1):
                tl.debug_barrier()
                _backward(
                    deltas + LAYERS[k][5],
                    theta,
                    kept + LAYERS[k - 1][4],
                    deltas + LAYERS[k - 1][5],
                    row,
                    inside,
                    KEPT_STRIDE,
                    DELTA_STRIDE,
                    DELTA_STRIDE,
                    LAYERS[k - 1][2],
                    LAYERS[k - 1][6],
                    LAYERS[k],
                    PRECISION,
                    UPCAST,
                )
            if input_grad is not None:
                tl.debug_barrier()
                _backward(
                    deltas + LAYERS[0][5],
                    theta,
                    None,
                    input_grad + (particle * x_rows + begin) * LAYERS[0][0],
                    row,
                    inside,
                    KEPT_STRIDE,
                    DELTA_STRIDE,
                    LAYERS[0][0],
                    IDENTITY,
                    LAYERS[0][6],
                    LAYERS[0],
                    PRECISION,
                    UPCAST,
                )


@dataclass(frozen=True)
class Tiles:
    """How the work is cut, and by that the order of sums; ``scratch`` decides it only if no chunk of a particle fits.

    Parameters
    ----------
    samples, units, depth
        The largest tile of a layer: samples by units, summed over ``depth`` inputs at a time.
    warps, stages
        Of the kernel that goes through the network.
    slice
        Samples whose weight gradients are summed in one go.
    chunk
        Samples that are in scratch at a time, at most; a multiple of ``slice``.
    scratch
        Bytes, unless one particle and one tile need more.
    """

    samples: int = 64
    units: int = 128
    depth: int = 32
    warps: int = 4
    stages: int = 3
    slice: int = 4096
    chunk: int = 65536
    scratch: int = 1 << 30


def choose_tiles(precision: int, samples: int) -> Tiles:
    """The tiles for a precision and a batch.

    As large as registers allow, for every row of x meets every weight; and slices as short as exact sums in float32
    need, since each costs a pass over the weights.
    """
    most, depth, warps, summed = ((64, 16, 4, 1024), (128, 16, 8, 2048), (128, 64, 8, 4096))[precision]
    return Tiles(samples=min(most, _tile(samples)), depth=depth, warps=warps, slice=summed)


def _tile(size: int, most: int = 1 << 30) -> int:
    """The power of two that covers a size: at least 16, as tensor cores need, and at most ``most``."""
    return max(16, min(triton.next_power_of_2(size), most))


class Place(NamedTuple):
    """A dense layer as kernels know it, by position: where its parts are, and its tiles.

    ``begin`` is of its weights in a particle, ``kept`` and ``delta`` of its units in the rows of scratch; ``units`` is
    the tile of its outputs, ``depth`` and ``depth_back`` are those of sums over its inputs and its outputs.
    """

    inputs: int
    outputs: int
    activation: int
    begin: int
    kept: int
    delta: int
    units: int
    depth: int
    depth_back: int


@dataclass(frozen=True)
class Stack:
    """Dense layers, and the rows of scratch that a sample takes in each particle."""

    layers: tuple[Place, ...]
    dim: int
    kept: int
    deltas: int

    @property
    def outputs(self) -> int:
        """Of the last layer."""
        return self.layers[-1].outputs

    @property
    def constants(self) -> dict:
        """What is compiled into the kernel of a network."""
        layers = tuple(map(tuple, self.layers))
        return {"LAYERS": layers, "DIM": self.dim, "KEPT_STRIDE": self.kept, "DELTA_STRIDE": self.deltas}


def dense_stack(layers: np.ndarray, tiles: Tiles, first: int = 0, dim: int | None = None) -> Stack:
    """Places of the dense layers of a table, whose weights begin at ``first`` in particles of length ``dim``."""
    begin, kept, deltas, places = first, 0, 0, []
    for layer in (Layer(*map(int, row)) for row in layers):
        if not layer.is_dense:
            raise NotImplementedError("layers has a convolution; the triton engine has dense layers only")
        inputs, outputs = layer.num_inputs, layer.num_outputs
        cut = (_tile(outputs, tiles.units), _tile(inputs, tiles.depth), _tile(outputs, tiles.depth))
        places.append(Place(inputs, outputs, layer.activation, begin, kept, deltas, *cut))
        begin += (inputs + 1) * outputs
        last = len(places) == len(layers)
        kept, deltas = kept + (0 if last else _aligned(outputs)), deltas + _aligned(outputs)
    if places[-1].activation != IDENTITY.value:
        raise NotImplementedError(
            f"layers ends with activation {places[-1].activation}; the triton engine needs 0, the identity, there"
        )
    return Stack(tuple(places), begin if dim is None else dim, kept, deltas)


def _aligned(width: int) -> int:
    return triton.cdiv(width, 16) * 16


class Data(NamedTuple):
    """A batch and the density of its targets: x [B, inputs], or [P, B, inputs] where each particle has its own."""

    x: torch.Tensor
    y: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    likelihood: int = 0
    noise: float = 1.0

    @property
    def samples(self) -> int:
        """B."""
        return self.x.shape[-2]


class Part(NamedTuple):
    """Particles ``first`` to ``last`` and samples ``begin`` to ``end`` of a batch: what is in scratch at a time."""

    first: int
    last: int
    begin: int
    end: int

    @property
    def shape(self) -> tuple[int, int]:
        """Particles and samples."""
        return self.last - self.first, self.end - self.begin


@dataclass(frozen=True)
class Evaluation:
    """All that stays the same while particles move: network, batch, precision, and how the work is cut."""

    stack: Stack
    tiles: Tiles
    data: Data
    precision: int

    @classmethod
    def of(cls, layers: np.ndarray, precision: int, data: Data, tiles: Tiles | None = None) -> Evaluation:
        """With the usual tiles, and x rounded once for all particles where products round it anyhow."""
        tiles = tiles or choose_tiles(precision, data.samples)
        stack = dense_stack(layers, tiles)
        if precision == MEDIUM.value:
            data = data._replace(x=data.x.to(torch.bfloat16))
        return cls(stack, tiles, data, precision)

    @property
    def dtype(self) -> torch.dtype:
        """Of scratch."""
        return torch.bfloat16 if self.precision == MEDIUM.value else torch.float32

    @property
    def chunk(self) -> int:
        """Samples in scratch at a time: whole slices where there is room for one."""
        most = min(self.tiles.chunk, self.tiles.scratch // self._row)
        unit = self.tiles.slice if most >= self.tiles.slice else self.tiles.samples
        return min(self.data.samples, max(most // unit, 1) * unit)

    @property
    def in_one(self) -> bool:
        """Whether one launch for each layer sums its whole gradient, so that it may move the weights as well."""
        return self.data.samples <= min(self.chunk, self.tiles.slice)

    @property
    def _row(self) -> int:
        """Bytes of scratch for a sample of a particle."""
        return (self.stack.kept + self.stack.deltas) * self.dtype.itemsize + 4 * _aligned(self.stack.outputs)

    def _parts(self, particles: int) -> Iterator[Part]:
        """The chunks of each group of particles in turn; only the groups depend on the number of particles."""
        sums = 0 if self.in_one else 4 * self.stack.dim * triton.cdiv(self.chunk, self.tiles.slice)
        group = max(1, self.tiles.scratch // (self.chunk * self._row + sums))
        for first in range(0, particles, group):
            for begin in range(0, self.data.samples, self.chunk):
                end = min(begin + self.chunk, self.data.samples)
                yield Part(first, min(first + group, particles), begin, end)

    def status(self) -> torch.Tensor | None:
        """Where bad labels are reported, if there are labels."""
        if self.data.y is None or self.data.likelihood != CATEGORICAL.value:
            return None
        return torch.full((1,), FINE.value, dtype=torch.int64, device=self.data.x.device)

    def network_outputs(self, particles: torch.Tensor, outputs: torch.Tensor) -> None:
        """Outputs [P, B, K]."""
        for part in self._parts(len(particles)):
            kept = particles.new_empty((*part.shape, self.stack.kept), dtype=self.dtype)
            self._forward(part, particles, kept, None, outputs[part.first :, part.begin :])

    def log_likelihood(
        self,
        particles: torch.Tensor,
        status: torch.Tensor | None,
        total: torch.Tensor | None,
        grad: torch.Tensor | None = None,
        update: Update | None = None,
        input_grad: torch.Tensor | None = None,
    ) -> None:
        """Log-likelihoods into ``total``; gradients into ``grad``, or used for an update of a batch that is `in_one`.

        Where particles have inputs of their own, ``input_grad`` [P, B, inputs] gets the gradient with respect to them.
        """
        tiles = triton.cdiv(self.data.samples, self.tiles.samples)
        partials = particles.new_empty((tiles, len(particles)), dtype=torch.float64)
        for part in self._parts(len(particles)):
            kept = particles.new_empty((*part.shape, self.stack.kept), dtype=self.dtype)
            outputs = particles.new_empty((*part.shape, _aligned(self.stack.outputs)))
            deltas = None
            if grad is not None or update is not None:
                deltas = particles.new_empty((*part.shape, self.stack.deltas), dtype=self.dtype)
            self._forward(part, particles, kept, deltas, outputs, partials, status, input_grad)
            if deltas is not None:
                self._gradient(part, particles, kept, deltas, grad, update)
        if total is not None:
            add_slices(partials, total)
            if self.data.likelihood == GAUSSIAN.value:
                count = self.data.samples if self.data.weights is None else self.data.weights.sum(dtype=torch.float64)
                total -= count * (0.5 * self.stack.outputs * math.log(2 * math.pi * self.data.noise**2))

    def _forward(
        self,
        part: Part,
        particles: torch.Tensor,
        kept: torch.Tensor,
        deltas: torch.Tensor | None,
        outputs: torch.Tensor,
        partials: torch.Tensor | None = None,
        status: torch.Tensor | None = None,
        input_grad: torch.Tensor | None = None,
    ) -> None:
        """Through the network, and back if there are deltas to be filled."""
        data, first, samples = self.data, part.first, slice(part.begin, part.end)
        tiles = triton.cdiv(part.shape[1], self.tiles.samples)
        shared = data.x.ndim == 2
        _mlp_kernel[(part.shape[0] * tiles,)](
            data.x[samples] if shared else data.x[first:, samples],
            None if partials is None else data.y[samples],
            None if data.weights is None else data.weights[samples],
            particles[first:],
            kept,
            deltas,
            outputs,
            None if input_grad is None else input_grad[first:, samples],
            None if partials is None else partials[part.begin // self.tiles.samples :, first:],
            status,
            part.shape[1],
            part.begin,
            tiles,
            0 if shared else data.samples,
            outputs.stride(0) // outputs.stride(1),
            len(particles),
            1 / data.noise**2,
            **self.stack.constants,
            OUTPUT_STRIDE=outputs.stride(1),
            LIKELIHOOD=data.likelihood,
            SAMPLES=self.tiles.samples,
            PRECISION=self.precision,
            UPCAST=INTERPRETED,
            num_warps=self.tiles.warps,
            num_stages=self.tiles.stages,
            **_OPTIONS,
        )

    def _gradient(
        self,
        part: Part,
        particles: torch.Tensor,
        kept: torch.Tensor,
        deltas: torch.Tensor,
        grad: torch.Tensor | None,
        update: Update | None,
    ) -> None:
        """Of all weights: the sums over slices of a part, in turn onto those of the parts before."""
        group = slice(part.first, part.last)
        sums = None
        if grad is not None:
            slices = triton.cdiv(part.shape[1], self.tiles.slice)
            sums = grad[None, group] if self.in_one else particles.new_empty((slices, *particles[group].shape))
        x = self.data.x[..., part.begin : part.end, :]
        for k, place in enumerate(self.stack.layers):
            before = self.stack.layers[k - 1]
            weight_gradient(
                x if k == 0 else kept[..., before.kept :],
                IDENTITY.value if k == 0 else before.activation,
                deltas[..., place.delta :],
                Weights(place.inputs, place.outputs, place.begin, self.stack.dim),
                self.tiles.slice,
                self.precision,
                sums,
                None if update is None else update.of(group),
            )
        if grad is not None and not self.in_one:
            add_slices(sums, grad[group], accumulate=part.begin > 0)


def log_likelihood(
    layers: np.ndarray,
    likelihood: int,
    noise: float,
    precision: int,
    particles: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor | None,
    log_likelihood: torch.Tensor,
    grad: torch.Tensor | None,
    *,
    tiles: Tiles | None = None,
) -> torch.Tensor | None:
    """Log-likelihood [P] of every particle, and its gradient [P, d] if it is asked for."""
    evaluation = Evaluation.of(layers, precision, Data(x, y, weights, likelihood, noise), tiles)
    status = evaluation.status()
    evaluation.log_likelihood(particles, status, log_likelihood, grad)
    return status


def network_outputs(
    layers: np.ndarray,
    precision: int,
    particles: torch.Tensor,
    x: torch.Tensor,
    outputs: torch.Tensor,
    *,
    tiles: Tiles | None = None,
) -> None:
    """Outputs [P, B, K] of every particle's network."""
    Evaluation.of(layers, precision, Data(x), tiles).network_outputs(particles, outputs)


def precision_in_use(layers: np.ndarray, precision: int) -> int:
    """The precision that was asked for: tensor cores have them all."""
    return precision


def _build(widths: tuple[int, ...], precision: int, with_grad: bool, registers: int, shared: int) -> Build:
    """Of a categorical network of tanh units with the usual tiles."""
    layers = [Layer(0, 2 * (k < len(widths) - 2), a, 1, 1, b, 1, 0, 1) for k, (a, b) in enumerate(pairwise(widths))]
    tiles = choose_tiles(precision, 1000)
    stack = dense_stack(np.array(layers), tiles)
    kind = "*bf16" if precision == MEDIUM.value else "*fp32"
    pointers = {"x": kind, "y": "*i64", "particles": "*fp32", "kept": kind, "deltas": kind, "outputs": "*fp32"}
    pointers |= {"partials": "*fp64", "status": "*i64"}
    numbers = dict.fromkeys(("samples", "first_sample", "tiles", "x_rows", "output_rows", "num_particles"), "i32")
    absent = ("weights", "input_grad") if with_grad else ("weights", "input_grad", "deltas")
    constants = dict.fromkeys(absent) | stack.constants
    constants |= {"OUTPUT_STRIDE": _aligned(stack.outputs), "LIKELIHOOD": CATEGORICAL.value, "SAMPLES": tiles.samples}
    constants |= {"PRECISION": precision, "UPCAST": False}
    return Build(
        f"{'gradient' if with_grad else 'log-likelihood'} of {'-'.join(map(str, widths))}, precision {precision}",
        _mlp_kernel,
        pointers | numbers | {"noise_precision": "fp32"} | dict.fromkeys(constants, "constexpr"),
        constants,
        tiles.warps,
        tiles.stages,
        registers,
        shared,
        True,
        _OPTIONS,
    )


# Registers and shared memory for each precision, the more of sm_80 and sm_90.
_MEANS = {
    (784, 100, 10): ((224, 40_960), (216, 65_536), (184, 98_304)),
    (784, 100, 100, 10): ((255, 40_960), (248, 65_536), (255, 98_304)),
    (13, 50, 1): ((168, 16_384), (136, 32_768), (136, 20_480)),
    (64, 32, 10): ((216, 16_384), (176, 24_576), (128, 24_576)),
}

BUILDS = tuple(
    _build(widths, precision, with_grad, *means[precision])
    for widths, means in _MEANS.items()
    for precision in range(3)
    for with_grad in (True, False)
)
