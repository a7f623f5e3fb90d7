"""Log-likelihoods, gradients and outputs of stacks of dense layers, for all particles over one batch.

One kernel takes a tile of samples through the whole network of one particle: forward, loss, and back to the gradients
with respect to the pre-activations of every layer, here called deltas. Weight gradients are left to a second kernel
(`fastsmc.kernels.weight_gradient`), for they are sums over the batch.

A layer's outputs are made one tile of units at a time, written to scratch, and read again by the next layer, through
the caches nearest to the processor: so no width has a limit. In scratch a sample of a particle has two rows, one of
what is kept of the hidden layers (`fastsmc.kernels.activations`), one of deltas. Each layer begins there at a multiple
of 16 entries, and ends in zeros up to the next: masks at such multiples let loads be wide. Deltas are in the parts that
products take them by, what is kept is bfloat16 where products round it anyhow, and float32 elsewhere; outputs are
float32 always.

The tiles of a particle are neighbours in the grid: its weights come from memory once, and from the second cache for its
other tiles, while the rows of x, the same for all particles, stay in that cache. Memory traffic, then: weights once,
scratch once each way.

Of a large batch the weights are split once for all tiles, and go to the tensor cores as they come; and the first layer,
which is most of the work, has a launch of its own: without the other layers its tile is larger and two blocks go side
by side. The launch behind it begins with what was kept, and ends with that layer's deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastsmc.kernels.activations import IDENTITY, TANH, kept_of, times_slope, value_of
from fastsmc.kernels.build import CAPABILITIES, PRODUCTS, Build
from fastsmc.kernels.dot import MEDIUM, aligned, load_parts, parts_in, parts_of, product, split_into, store, store_parts
from fastsmc.kernels.losses import CATEGORICAL, FINE, bad_labels, loss
from fastsmc.kernels.sizes import cdiv, padded
from fastsmc.kernels.sums import sum_in_any_order
from fastsmc.kernels.tiles import Tiles, choose_tiles, power_of_two
from fastsmc.networks import Layer


@triton.constexpr_function
def packed_size(inputs: int, outputs: int) -> int:
    """Entries of a part of a layer's packed weights."""
    return outputs * aligned(inputs + 1)


@triton.jit
def _forward(
    inputs,
    theta,
    packed,
    out,
    row,
    inside,
    INPUT_STRIDE: tl.constexpr,
    INPUT_PLANE: tl.constexpr,
    INPUT_ACTIVATION: tl.constexpr,
    INPUT_PADDED: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    LAYERS: tl.constexpr,
    LAYER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What is kept of one layer, for a tile of samples, from the parts of x or what was kept of the layer before.

    Weights are those in theta, or ``packed`` in parts. Rows that are padded end in zeros.
    """
    INPUTS: tl.constexpr = LAYERS[LAYER][0]
    OUTPUTS: tl.constexpr = LAYERS[LAYER][1]
    UNITS: tl.constexpr = LAYERS[LAYER][6]
    DEPTH: tl.constexpr = LAYERS[LAYER][7]
    PLANE: tl.constexpr = aligned(INPUTS + 1)
    WIDTH: tl.constexpr = aligned(INPUTS) if INPUT_PADDED else INPUTS
    OUT_WIDTH: tl.constexpr = aligned(OUTPUTS) if OUT_PADDED else OUTPUTS
    weight = theta + LAYERS[LAYER][3]
    for first in range(0, OUTPUTS, UNITS):
        unit = first + tl.arange(0, UNITS)
        z = tl.zeros((row.shape[0], UNITS), tl.float32)
        for begin in range(0, INPUTS, DEPTH):
            k = begin + tl.arange(0, DEPTH)
            at, mask = inputs + row[:, None] * INPUT_STRIDE + k[None, :], inside[:, None] & (k < WIDTH)[None, :]
            if INPUT_PLANE:
                h = load_parts(at, mask, INPUT_PLANE, PRECISION)
            else:
                h = parts_of(value_of(tl.load(at, mask=mask, other=0), INPUT_ACTIVATION), PRECISION)
            if packed is None:
                mask = (k < INPUTS)[:, None] & (unit < OUTPUTS)[None, :]
                w = tl.load(weight + unit[None, :] * INPUTS + k[:, None], mask=mask, other=0)
                w = parts_of(w, PRECISION)
            else:
                at = packed + unit[None, :] * ((3 - PRECISION) * PLANE) + k[:, None]
                mask = (k < aligned(INPUTS))[:, None] & (unit < OUTPUTS)[None, :]
                w = load_parts(at, mask, PLANE, PRECISION)
            z = product(h, w, z, PRECISION)
        z += tl.load(weight + INPUTS * OUTPUTS + unit, mask=unit < OUTPUTS, other=0)[None, :]
        z = tl.where((unit < OUTPUTS)[None, :], kept_of(z, LAYERS[LAYER][2]), 0.0)
        store(out + row[:, None] * OUT_STRIDE + unit[None, :], z, inside[:, None] & (unit < OUT_WIDTH)[None, :])


@triton.jit
def _backward(
    deltas,
    theta,
    packed,
    kept,
    out,
    row,
    inside,
    KEPT_STRIDE: tl.constexpr,
    DELTA_STRIDE: tl.constexpr,
    DELTA_PLANE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    OUT_PLANE: tl.constexpr,
    OUT_PADDED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UNITS: tl.constexpr,
    LAYERS: tl.constexpr,
    LAYER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The deltas of the layer before, from those of one layer; ``ACTIVATION`` is the one between them.

    Rows of what is kept and of the deltas of the layer before are padded, or both are not.
    """
    INPUTS: tl.constexpr = LAYERS[LAYER][0]
    OUTPUTS: tl.constexpr = LAYERS[LAYER][1]
    DEPTH: tl.constexpr = LAYERS[LAYER][8]
    PLANE: tl.constexpr = aligned(INPUTS + 1)
    WIDTH: tl.constexpr = aligned(INPUTS) if OUT_PADDED else INPUTS
    for first in range(0, INPUTS, UNITS):
        unit = first + tl.arange(0, UNITS)
        mask = inside[:, None] & (unit < WIDTH)[None, :]
        delta = tl.zeros((row.shape[0], UNITS), tl.float32)
        for begin in range(0, OUTPUTS, DEPTH):
            k = begin + tl.arange(0, DEPTH)
            at = deltas + row[:, None] * DELTA_STRIDE + k[None, :]
            d = load_parts(at, inside[:, None] & (k < aligned(OUTPUTS))[None, :], DELTA_PLANE, PRECISION)
            if packed is None:
                mask_of_w = (k < OUTPUTS)[:, None] & (unit < INPUTS)[None, :]
                w = tl.load(theta + LAYERS[LAYER][3] + k[:, None] * INPUTS + unit[None, :], mask=mask_of_w, other=0)
                w = parts_of(w, PRECISION)
            else:
                at = packed + k[:, None] * ((3 - PRECISION) * PLANE) + unit[None, :]
                mask_of_w = (k < OUTPUTS)[:, None] & (unit < aligned(INPUTS))[None, :]
                w = load_parts(at, mask_of_w, PLANE, PRECISION)
            delta = product(d, w, delta, PRECISION)
        if ACTIVATION != IDENTITY:
            h = tl.load(kept + row[:, None] * KEPT_STRIDE + unit[None, :], mask=mask, other=0)
            delta = times_slope(delta, h, ACTIVATION)
        delta = tl.where((unit < INPUTS)[None, :], delta, 0.0)
        at = out + row[:, None] * OUT_STRIDE + unit[None, :]
        if OUT_PLANE:
            store_parts(at, delta, mask, OUT_PLANE, PRECISION)
        else:
            store(at, delta, mask)


@triton.jit
def _mlp_kernel(
    x,
    y,
    weights,
    particles,
    packed,
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
    PACKED: tl.constexpr,
    KEPT_STRIDE: tl.constexpr,
    DELTA_PLANE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    X_PLANE: tl.constexpr,
    INPUT_ACTIVATION: tl.constexpr,
    INPUT_PADDED: tl.constexpr,
    INPUT_GRAD_STRIDE: tl.constexpr,
    INPUT_GRAD_PLANE: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    OUTPUT_PADDED: tl.constexpr,
    LIKELIHOOD: tl.constexpr,
    SAMPLES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of samples of one particle.

    ``x_rows`` and ``output_rows`` are the samples between two particles' inputs, 0 if they share them, and outputs.
    Weights may be ``packed``, a layer's behind the one before, ``PACKED`` entries of a part in all. Without ``y`` only
    the outputs are made, without ``deltas`` no gradient, without ``input_grad`` none with respect to the inputs, which
    then are each particle's own.
    """
    LAST: tl.constexpr = len(LAYERS) - 1
    PARTS: tl.constexpr = 3 - PRECISION
    DELTA_STRIDE: tl.constexpr = PARTS * DELTA_PLANE
    particle = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    row = tl.arange(0, SAMPLES)
    inside = row < samples - tile * SAMPLES
    begin = tile.to(tl.int64) * SAMPLES
    theta = particles + particle * DIM
    x += (particle * x_rows + begin) * X_STRIDE
    outputs += (particle * output_rows + begin) * OUTPUT_STRIDE
    kept += (particle * samples + begin) * KEPT_STRIDE
    if packed is not None:
        packed += particle * (PARTS * PACKED)

    for k in tl.static_range(len(LAYERS)):
        for i in range(LAYERS[k][9]):
            size = packed_size(LAYERS[k][0], LAYERS[k][1])
            parts = None if packed is None else packed + PARTS * (LAYERS[k][10] + i * size)
            _forward(
                x if k == 0 else kept + (LAYERS[k][4] - aligned(LAYERS[k][0])) + i * aligned(LAYERS[k][1]),
                theta + i * ((LAYERS[k][0] + 1) * LAYERS[k][1]),
                parts,
                outputs if k == LAST else kept + LAYERS[k][4] + i * aligned(LAYERS[k][1]),
                row,
                inside,
                X_STRIDE if k == 0 else KEPT_STRIDE,
                X_PLANE if k == 0 else 0,
                INPUT_ACTIVATION if k == 0 else LAYERS[k - 1][2],
                INPUT_PADDED if k == 0 else True,
                OUTPUT_STRIDE if k == LAST else KEPT_STRIDE,
                OUTPUT_PADDED if k == LAST else True,
                LAYERS,
                k,
                PRECISION,
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
            DELTA_PLANE,
            LAYERS[LAST][6],
            PRECISION,
        )
        tl.store(partials + tile.to(tl.int64) * num_particles + particle, sum_in_any_order(value, 0))
        if LIKELIHOOD == CATEGORICAL:
            worst = bad_labels(y, sample, first_sample, inside, LAYERS[LAST][1])
            tl.atomic_min(status, worst, mask=worst < FINE)

        if deltas is not None:
            for k in tl.static_range(LAST, 0, -1):
                for j in range(LAYERS[k][9]):
                    i = LAYERS[k][9] - 1 - j
                    shift = i * aligned(LAYERS[k][1])
                    size = packed_size(LAYERS[k][0], LAYERS[k][1])
                    parts = None if packed is None else packed + PARTS * (LAYERS[k][10] + i * size)
                    tl.debug_barrier()
                    _backward(
                        deltas + LAYERS[k][5] + shift,
                        theta + i * ((LAYERS[k][0] + 1) * LAYERS[k][1]),
                        parts,
                        kept + (LAYERS[k][4] - aligned(LAYERS[k][0])) + shift,
                        deltas + (LAYERS[k][5] - aligned(LAYERS[k][0])) + shift,
                        row,
                        inside,
                        KEPT_STRIDE,
                        DELTA_STRIDE,
                        DELTA_PLANE,
                        DELTA_STRIDE,
                        DELTA_PLANE,
                        True,
                        LAYERS[k - 1][2],
                        LAYERS[k - 1][6],
                        LAYERS,
                        k,
                        PRECISION,
                    )
            if input_grad is not None:
                tl.debug_barrier()
                _backward(
                    deltas + LAYERS[0][5],
                    theta,
                    None if packed is None else packed + PARTS * LAYERS[0][10],
                    x,
                    input_grad + (particle * x_rows + begin) * INPUT_GRAD_STRIDE,
                    row,
                    inside,
                    X_STRIDE,
                    DELTA_STRIDE,
                    DELTA_PLANE,
                    INPUT_GRAD_STRIDE,
                    INPUT_GRAD_PLANE,
                    INPUT_PADDED,
                    INPUT_ACTIVATION,
                    LAYERS[0][6],
                    LAYERS,
                    0,
                    PRECISION,
                )


class Place(NamedTuple):
    """A dense layer as kernels know it, by position: where its parts are, and its tiles.

    ``begin`` is of its weights in a particle, ``kept`` and ``delta`` of its units in the rows of scratch, ``packed`` of
    its packed weights in those of a part; ``units`` is the tile of its outputs, ``depth`` and ``depth_back`` are those
    of sums over its inputs and its outputs. So many ``repeats`` of it, itself among them, come one behind the other.
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
    repeats: int = 1
    packed: int = 0


@dataclass(frozen=True)
class Stack:
    """Dense layers, and how long rows are in scratch.

    Of a sample what is ``kept``, and each part of ``deltas``; of a particle each part of its ``packed`` weights.
    """

    layers: tuple[Place, ...]
    dim: int
    packed: int
    kept: int
    deltas: int

    @property
    def outputs(self) -> int:
        """Of the last layer."""
        return self.layers[-1].outputs

    def pack(self, particles: torch.Tensor, precision: int) -> torch.Tensor:
        """The weights of all layers in parts, bfloat16 [P, parts * packed]; biases stay where they are."""
        parts = parts_in(precision)
        packed = particles.new_empty((len(particles), parts * self.packed), dtype=torch.bfloat16)
        for place in self.layers:
            into, weights = packed[:, parts * place.packed :], particles[:, place.begin :]
            split_into(into, weights, precision, place.outputs, place.inputs)
        return packed

    def first_alone(self, tiles: Tiles) -> Stack:
        """The first layer, cut by tiles of its own; its rows are the same."""
        first = self.layers[0]
        units, depth = power_of_two(first.outputs, tiles.units), power_of_two(first.inputs, tiles.depth)
        return replace(self, layers=(first._replace(units=units, depth=depth),))

    @cached_property
    def behind_first(self) -> Stack:
        """The other layers, whose rows are the same."""
        return replace(self, layers=self.layers[1:])

    @cached_property
    def constants(self) -> dict:
        """What is compiled into the kernel of a network."""
        return {
            "LAYERS": tuple(map(tuple, self._runs())),
            "DIM": self.dim,
            "PACKED": self.packed,
            "KEPT_STRIDE": self.kept,
            "DELTA_PLANE": self.deltas,
        }

    def _runs(self) -> list[Place]:
        """Layers; hidden ones that differ from the one before in their places alone are compiled as one."""
        runs = list(self.layers[:2])
        for above, before, place in zip(self.layers, self.layers[1:], self.layers[2:-1], strict=False):
            at = {name: getattr(before, name) for name in ("begin", "kept", "delta", "packed")}
            same = place._replace(**at) == before
            if same and above.activation == place.activation:
                runs[-1] = runs[-1]._replace(repeats=runs[-1].repeats + 1)
            else:
                runs.append(place)
        return runs + list(self.layers[2:][-1:])


def dense_stack(layers: Sequence[Layer], tiles: Tiles, first: int = 0, dim: int | None = None) -> Stack:
    """Places of dense layers, whose weights begin at ``first`` in particles of length ``dim``."""
    begin, packed, kept, deltas, places = first, 0, 0, 0, []
    for layer in layers:
        if not layer.is_dense:
            raise NotImplementedError(
                "layers has a convolution behind a dense layer; the triton engine needs it in front"
            )
        inputs, outputs = layer.num_inputs, layer.num_outputs
        cut = (
            power_of_two(outputs, tiles.units),
            power_of_two(inputs, tiles.depth),
            power_of_two(outputs, tiles.depth),
        )
        places.append(Place(inputs, outputs, layer.activation, begin, kept, deltas, *cut, packed=packed))
        packed += packed_size(inputs, outputs)
        begin += (inputs + 1) * outputs
        last = len(places) == len(layers)
        kept, deltas = kept + (0 if last else padded(outputs)), deltas + padded(outputs)
    if places[-1].activation != IDENTITY.value:
        raise NotImplementedError(
            f"layers ends with activation {places[-1].activation}; the triton engine needs 0, the identity, there"
        )
    return Stack(tuple(places), begin if dim is None else dim, packed, kept, deltas)


class Data(NamedTuple):
    """A batch and the density of its targets: x [B, inputs], or [P, B, inputs] where each particle has its own.

    Where x is in parts, ``plane`` entries apart, its last dimension holds them all (see `fastsmc.kernels.dot.split`).
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    likelihood: int = 0
    noise: float = 1.0
    plane: int = 0

    @property
    def samples(self) -> int:
        """B."""
        return self.x.shape[-2]

    @property
    def x_rows(self) -> int:
        """Samples from one particle's inputs to the next's, 0 if they share them."""
        return 0 if self.x.ndim == 2 else self.x.stride(0) // self.x.stride(1)

    def of(self, particles: slice, samples: slice) -> Data:
        """The part that these particles and samples see."""
        x = self.x[samples] if self.x.ndim == 2 else self.x[particles, samples]
        y, weights = (None if a is None else a[samples] for a in (self.y, self.weights))
        return self._replace(x=x, y=y, weights=weights)


class Rows(NamedTuple):
    """What is written for each sample [P, B, ..]: kept hidden layers, deltas if there is a gradient, and outputs."""

    kept: torch.Tensor
    deltas: torch.Tensor | None
    outputs: torch.Tensor


def through(
    stack: Stack,
    tiles: Tiles,
    precision: int,
    data: Data,
    input_activation: int,
    particles: torch.Tensor,
    rows: Rows,
    input_grad: torch.Tensor | None = None,
    partials: torch.Tensor | None = None,
    status: torch.Tensor | None = None,
    first_sample: int = 0,
    packed: torch.Tensor | None = None,
    inputs_padded: bool = False,
    outputs_padded: bool = False,
) -> None:
    """Take a batch through the stack, and back if there are deltas to be filled.

    Parameters
    ----------
    data
        Its x may be what is kept of a layer before, whose ``input_activation`` is yet to be applied.
    input_grad : [P, B, inputs], optional
        Gets the gradient with respect to the pre-activations of the layer before, where particles have inputs of their
        own: float32, or bfloat16 in parts as deltas are.
    partials : float64 [tiles, P], optional
        Gets the log-likelihood of each tile; without it only outputs are made.
    first_sample
        The samples that come before this batch, as the status counts.
    packed : bfloat16 [P, parts * packed], optional
        The weights of all layers, as the stack packs them.
    inputs_padded
        Whether x and ``input_grad`` are rows of scratch, which end in zeros up to a multiple of 16.
    outputs_padded
        Whether the outputs are to be such rows.
    """
    P, samples = rows.kept.shape[:2]
    cut = cdiv(samples, tiles.samples)
    _mlp_kernel[(P * cut,)](
        data.x,
        None if partials is None else data.y,
        data.weights,
        particles,
        packed,
        rows.kept,
        rows.deltas,
        rows.outputs,
        input_grad,
        partials,
        status,
        samples,
        first_sample,
        cut,
        data.x_rows,
        rows.outputs.stride(0) // rows.outputs.stride(1),
        0 if partials is None else partials.stride(0),
        1 / data.noise**2,
        **stack.constants,
        X_STRIDE=data.x.stride(-2),
        X_PLANE=data.plane,
        INPUT_ACTIVATION=input_activation,
        INPUT_PADDED=inputs_padded,
        INPUT_GRAD_STRIDE=0 if input_grad is None else input_grad.stride(1),
        INPUT_GRAD_PLANE=0 if input_grad is None or input_grad.dtype == torch.float32 else stack.deltas,
        OUTPUT_STRIDE=rows.outputs.stride(1),
        OUTPUT_PADDED=outputs_padded,
        LIKELIHOOD=data.likelihood,
        SAMPLES=tiles.samples,
        PRECISION=precision,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **PRODUCTS,
    )


def _build(
    widths: tuple[int, ...],
    precision: int,
    part: str,
    with_grad: bool,
    capability: int,
    registers: int,
    shared: int,
) -> Build:
    """Of a categorical network of tanh units with the usual tiles: whole, or where its first layer goes by itself."""
    tanh = [TANH.value] * (len(widths) - 2) + [IDENTITY.value]
    layers = [Layer(0, a, n, 1, 1, m, 1, 0, 1) for a, (n, m) in zip(tanh, pairwise(widths), strict=True)]
    tiles = choose_tiles(precision, 64 if part == WHOLE else 1000, f"{capability / 10}")
    stack, plane, parts = dense_stack(layers, tiles), padded(widths[0] + 1), parts_in(precision)
    rows = "*bf16" if precision == MEDIUM.value else "*fp32"
    pointers = {"x": "*bf16", "y": "*i64", "weights": None, "particles": "*fp32", "packed": None, "kept": rows}
    pointers |= {"deltas": "*bf16" if with_grad else None, "outputs": "*fp32", "input_grad": None}
    pointers |= {"partials": "*fp64", "status": "*i64"}
    constants = {"X_STRIDE": parts * plane, "X_PLANE": plane, "INPUT_ACTIVATION": 0}
    constants |= {"INPUT_GRAD_STRIDE": 0, "INPUT_GRAD_PLANE": 0, "OUTPUT_STRIDE": padded(stack.outputs)}
    constants |= {"INPUT_PADDED": part == BEHIND, "OUTPUT_PADDED": part == FIRST}
    if part == FIRST:
        pointers |= dict.fromkeys(("y", "deltas", "partials", "status")) | {"packed": "*bf16", "outputs": rows}
        constants |= {"OUTPUT_STRIDE": stack.kept}
        tiles = tiles.first or tiles
        stack = stack.first_alone(tiles)
    elif part == BEHIND:
        stack = stack.behind_first
        pointers |= {"x": rows, "packed": "*bf16", "input_grad": pointers["deltas"]}
        constants |= {"X_STRIDE": stack.kept, "X_PLANE": 0, "INPUT_ACTIVATION": TANH.value}
        constants |= {"INPUT_GRAD_STRIDE": parts * stack.deltas, "INPUT_GRAD_PLANE": stack.deltas}
    constants |= stack.constants | {"LIKELIHOOD": CATEGORICAL.value, "SAMPLES": tiles.samples, "PRECISION": precision}
    constants |= {name: None for name, kind in pointers.items() if kind is None}
    numbers = ("samples", "first_sample", "tiles", "x_rows", "output_rows", "num_particles")
    signature = pointers | dict.fromkeys(numbers, "i32") | {"noise_precision": "fp32"}
    return Build(
        f"{'gradient' if with_grad else 'log-likelihood'} of {'-'.join(map(str, widths))}, {part}, "
        f"precision {precision}, sm_{capability}",
        _mlp_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        tiles.warps,
        tiles.stages,
        registers,
        shared,
        True,
        PRODUCTS,
        (capability,),
    )


WHOLE, FIRST, BEHIND = "whole", "first layer", "behind the first layer"

# Registers and shared memory for each precision, the most of all parts, by Triton 3.6 and 3.9; of small networks the
# default precision.
_MEANS = {
    (784, 100, 100, 10): ((255, 110_592), (255, 98_304), (255, 98_304)),
    (13, 50, 1): ((200, 41_984),),
    (64, 32, 10): ((184, 92_160),),
}

BUILDS = tuple(
    _build(widths, precision, part, with_grad, capability, registers, shared)
    for widths, means in _MEANS.items()
    for precision, (registers, shared) in enumerate(means)
    for part, with_grad in ((WHOLE, True), (FIRST, False), (BEHIND, True), (BEHIND, False))
    if with_grad or len(widths) == 4  # a value alone needs less
    for capability in CAPABILITIES
)
