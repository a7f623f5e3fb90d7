"""Log-likelihoods, gradients and outputs of whole networks: convolutions first, dense layers behind them.

Convolutions go one by one (`fastsmc.kernels.convolution`), the dense layers in one kernel (`fastsmc.kernels.mlp`) that
turns back at the loss and hands its input gradient to the last convolution. Then come the weight gradients.

Large batches go in chunks of samples, and particles in groups, so that scratch has a limit. Only the groups depend on
how many particles there are: a particle alone has the same bits as among others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import starmap, takewhile
from typing import NamedTuple

import numpy as np
import torch

from fastsmc.arrays import capability
from fastsmc.kernels import convolution as conv
from fastsmc.kernels.activations import IDENTITY
from fastsmc.kernels.convolution import Convolution, Features
from fastsmc.kernels.dot import MEDIUM, parts_in, split
from fastsmc.kernels.losses import CATEGORICAL, GAUSSIAN
from fastsmc.kernels.mlp import Data, Rows, Stack, dense_stack, through
from fastsmc.kernels.rows import new_status
from fastsmc.kernels.sizes import cdiv, padded
from fastsmc.kernels.sums import add_slices
from fastsmc.kernels.tiles import Tiles, choose_tiles
from fastsmc.kernels.update import Update
from fastsmc.kernels.weight_gradient import Weights, weight_gradient
from fastsmc.networks import Layer


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

    @property
    def group(self) -> slice:
        """Of particles."""
        return slice(self.first, self.last)

    @property
    def chunk(self) -> slice:
        """Of samples."""
        return slice(self.begin, self.end)


class Inputs(NamedTuple):
    """What a layer reads: what is kept of the one before, [B, ..] or [P, B, ..], and its activation, still to do.

    Or x in parts, ``plane`` entries apart.
    """

    kept: torch.Tensor
    activation: int = IDENTITY.value
    plane: int = 0


class Scratch(NamedTuple):
    """Of a part: inputs of each convolution, and last of the dense layers; features and rows that they wrote."""

    inputs: list[Inputs]
    features: list[Features]
    rows: Rows


@dataclass(frozen=True)
class Schedule:
    """How the work on so many samples of a network is cut: what is known before there are any, and found once."""

    convolutions: tuple[Convolution, ...]
    stack: Stack
    tiles: Tiles
    precision: int
    samples: int

    @staticmethod
    @lru_cache(256)
    def of(layers: tuple[Layer, ...], precision: int, samples: int, tiles: Tiles) -> Schedule:
        """For layers of which the convolutions come first."""
        dim = sum(layer.num_params for layer in layers)
        convolutions, begin = [], 0
        for layer in takewhile(lambda layer: not layer.is_dense, layers):
            convolutions.append(Convolution(layer, begin, dim))
            begin = convolutions[-1].end
        if len(convolutions) == len(layers):
            raise NotImplementedError("layers ends with a convolution; the triton engine needs a dense layer there")
        stack = dense_stack(layers[len(convolutions) :], tiles, begin, dim)
        return Schedule(tuple(convolutions), stack, tiles, precision, samples)

    @property
    def dtype(self) -> torch.dtype:
        """Of scratch."""
        return torch.bfloat16 if self.precision == MEDIUM.value else torch.float32

    @cached_property
    def chunk(self) -> int:
        """Samples in scratch at a time: whole slices where there is room for one."""
        most = min(self.tiles.chunk, self.tiles.scratch // self._row)
        unit = self.tiles.slice if most >= self.tiles.slice else self.tiles.samples
        return min(self.samples, max(most // unit, 1) * unit)

    @cached_property
    def in_one(self) -> bool:
        """Whether one launch for each layer sums its whole gradient, so that it may move the weights as well."""
        return self.dense_in_one and self.samples <= self.image_slice

    @property
    def fuses(self) -> bool:
        """Whether an update of weights costs less where their gradient is summed than by itself."""
        return self.in_one and self.samples <= self.tiles.fused

    @property
    def packs(self) -> bool:
        """Whether so many tiles read the dense layers' weights that these are worth splitting once for all."""
        return self.samples >= self.tiles.packed

    @cached_property
    def dense_in_one(self) -> bool:
        """The same as `in_one` of dense layers."""
        return self.samples <= min(self.chunk, self.tiles.slice)

    @cached_property
    def image_slice(self) -> int:
        """Samples whose convolutions' gradients are summed in one go: few, or a few particles would not fill a GPU."""
        pixels = max((convolution.pixels for convolution in self.convolutions), default=0)
        if pixels == 0:
            return self.chunk
        return max(self.tiles.pixels // pixels, cdiv(self.chunk, self.tiles.image_slices), 1)

    @cached_property
    def first_alone(self) -> tuple[Stack, Tiles] | None:
        """The first dense layer and how it is cut, where it goes by itself."""
        if not self.packs or self.convolutions or len(self.stack.layers) == 1:
            return None
        tiles = self.tiles.first or self.tiles
        return self.stack.first_alone(tiles), tiles

    @cached_property
    def _row(self) -> int:
        """Bytes of scratch for a sample of a particle."""
        hidden = self.stack.kept * self.dtype.itemsize + 2 * parts_in(self.precision) * self.stack.deltas
        dense = hidden + 4 * padded(self.stack.outputs)
        return dense + sum(conv.bytes_per_sample(convolution, self.dtype) for convolution in self.convolutions)

    @property
    def image_weights(self) -> int:
        """Those of convolutions, which come first in a particle."""
        return self.stack.layers[0].begin

    @cached_property
    def _particle(self) -> int:
        """Bytes of scratch for a particle."""
        dense = 0 if self.dense_in_one else self.stack.dim * cdiv(self.chunk, self.tiles.slice)
        images = 0 if self.in_one else self.image_weights * cdiv(self.chunk, self.image_slice)
        packed = 2 * parts_in(self.precision) * self.stack.packed if self.packs else 0
        return self.chunk * self._row + 4 * (dense + images) + packed

    def _group(self, particles: int) -> int:
        """Particles in scratch at a time: groups are as few as there is room for, and as equal."""
        groups = cdiv(particles, max(1, self.tiles.scratch // self._particle))
        return cdiv(particles, groups)

    def scratch(self, particles: int) -> int:
        """Bytes that so many particles take at a time."""
        return self._group(particles) * self._particle

    def parts(self, particles: int) -> Iterator[Part]:
        """The chunks of each group of particles in turn; only the groups depend on the number of particles."""
        group = self._group(particles)
        for first in range(0, particles, group):
            for begin in range(0, self.samples, self.chunk):
                end = min(begin + self.chunk, self.samples)
                yield Part(first, min(first + group, particles), begin, end)


@dataclass(frozen=True)
class Evaluation:
    """All that stays the same while particles move: a schedule, and its batch."""

    schedule: Schedule
    data: Data

    @classmethod
    def of(cls, layers: np.ndarray, precision: int, data: Data, tiles: Tiles | None = None) -> Evaluation:
        """With the usual tiles unless others are given."""
        tiles = tiles or choose_tiles(precision, data.samples, capability(str(data.x.device)))
        return cls(Schedule.of(tuple(starmap(Layer, layers.tolist())), precision, data.samples, tiles), data)

    def rounded(self) -> Evaluation:
        """The same with x once for all particles as products take it: in parts, or rounded where there are images."""
        if self.schedule.convolutions:
            return replace(self, data=self.data._replace(x=self.data.x.to(self.schedule.dtype)))
        x, plane = split(self.data.x, self.schedule.precision)
        return replace(self, data=self.data._replace(x=x, plane=plane))

    def weighted(self, weights: torch.Tensor | None) -> Evaluation:
        """The same with other weights of the samples."""
        return replace(self, data=self.data._replace(weights=weights))

    def status(self) -> torch.Tensor | None:
        """Where bad labels are reported, if there are labels."""
        if self.data.y is None or self.data.likelihood != CATEGORICAL.value:
            return None
        return new_status(self.data.x)

    def network_outputs(self, particles: torch.Tensor, outputs: torch.Tensor) -> None:
        """Outputs [P, B, K]."""
        for part in self.schedule.parts(len(particles)):
            self._forward(part, particles, outputs[part.group, part.chunk])

    def log_likelihood(
        self,
        particles: torch.Tensor,
        status: torch.Tensor | None,
        total: torch.Tensor | None,
        grad: torch.Tensor | None = None,
        update: Update | None = None,
    ) -> None:
        """Log-likelihoods into ``total``; gradients into ``grad``, or used for an update if all is `in_one`."""
        with_grad = grad is not None or update is not None
        tiles = cdiv(self.data.samples, self.schedule.tiles.samples)
        partials = particles.new_empty((tiles, len(particles)), dtype=torch.float64)
        for part in self.schedule.parts(len(particles)):
            outputs = particles.new_empty((*part.shape, padded(self.schedule.stack.outputs)))
            scratch = self._forward(part, particles, outputs, with_grad, partials, status)
            if with_grad:
                self._dense_gradients(part, scratch, grad, update)
                self._image_gradients(part, particles, scratch, grad, update)
        if total is not None:
            add_slices(partials, total)
            if self.data.likelihood == GAUSSIAN.value:
                count = self.data.samples if self.data.weights is None else self.data.weights.sum(dtype=torch.float64)
                total -= count * (0.5 * self.schedule.stack.outputs * math.log(2 * math.pi * self.data.noise**2))

    def _forward(
        self,
        part: Part,
        particles: torch.Tensor,
        outputs: torch.Tensor,
        with_grad: bool = False,
        partials: torch.Tensor | None = None,
        status: torch.Tensor | None = None,
    ) -> Scratch:
        """Through the network, and back through the dense layers if there is to be a gradient."""
        schedule = self.schedule
        data, group = self.data.of(part.group, part.chunk), particles[part.group]
        inputs, features = [Inputs(data.x, plane=data.plane)], []
        for convolution in schedule.convolutions:
            features.append(Features.empty(convolution, part.shape, schedule.dtype, particles.device, with_grad))
            conv.forward(convolution, *inputs[-1][:2], group, features[-1], schedule.precision)
            inputs.append(Inputs(features[-1].kept, convolution.layer.activation))
        kept = particles.new_empty((*part.shape, schedule.stack.kept), dtype=schedule.dtype)
        width = parts_in(schedule.precision) * schedule.stack.deltas
        deltas = particles.new_empty((*part.shape, width), dtype=torch.bfloat16) if with_grad else None
        rows = Rows(kept, deltas, outputs)
        stack, before, behind = schedule.stack, inputs[-1], False
        input_grad = features[-1].deltas if features else None
        first = stack.layers[0]
        packed = stack.pack(group, schedule.precision) if schedule.packs else None
        if schedule.first_alone is not None:
            before = Inputs(kept[..., first.kept :], first.activation)
            alone = Rows(kept, None, before.kept)
            through(
                *schedule.first_alone, schedule.precision, data, 0, group, alone, packed=packed, outputs_padded=True
            )
            stack, behind = stack.behind_first, True
            input_grad = deltas[..., first.delta :] if with_grad else None
        through(
            stack,
            schedule.tiles,
            schedule.precision,
            data._replace(x=before.kept, plane=before.plane),
            before.activation,
            group,
            rows,
            input_grad,
            None if partials is None else partials[part.begin // schedule.tiles.samples :, part.first :],
            status,
            part.begin,
            packed,
            behind,
        )
        return Scratch(inputs, features, rows)

    def _dense_gradients(self, part: Part, scratch: Scratch, grad: torch.Tensor | None, update: Update | None) -> None:
        """The sums over slices of a part, in turn onto those of the parts before."""
        kept, deltas, _ = scratch.rows
        sums = self._sums(part, grad, self.schedule.dense_in_one, self.schedule.tiles.slice, self.schedule.stack.dim)
        before = scratch.inputs[-1]
        for place in self.schedule.stack.layers:
            weight_gradient(
                *before,
                deltas[..., place.delta :],
                Weights(place.inputs, place.outputs, place.begin, self.schedule.stack.dim),
                self.schedule.tiles,
                self.schedule.precision,
                sums,
                None if update is None else update.of(part.group),
            )
            before = Inputs(kept[..., place.kept :], place.activation)
        if grad is not None and not self.schedule.dense_in_one:
            begin = self.schedule.image_weights
            add_slices(sums[..., begin:], grad[part.group, begin:], accumulate=part.begin > 0)

    def _image_gradients(
        self,
        part: Part,
        particles: torch.Tensor,
        scratch: Scratch,
        grad: torch.Tensor | None,
        update: Update | None,
    ) -> None:
        """The same of convolutions, from the last to the first; an update of weights comes after their last use."""
        schedule = self.schedule
        end = schedule.image_weights
        sums = self._sums(part, grad, schedule.in_one, schedule.image_slice, end)
        for k in reversed(range(len(schedule.convolutions))):
            convolution, features = schedule.convolutions[k], scratch.features[k]
            if k > 0:
                before = scratch.features[k - 1]
                conv.input_gradient(
                    convolution,
                    features,
                    particles[part.group],
                    schedule.convolutions[k - 1],
                    before,
                    schedule.precision,
                )
            conv.weight_gradient(
                convolution,
                *scratch.inputs[k][:2],
                features,
                schedule.image_slice,
                schedule.precision,
                sums,
                None if update is None else update.of(part.group),
            )
        if schedule.convolutions and grad is not None and not schedule.in_one:
            add_slices(sums, grad[part.group, :end], accumulate=part.begin > 0)

    def _sums(
        self, part: Part, grad: torch.Tensor | None, in_one: bool, slice_samples: int, width: int
    ) -> torch.Tensor | None:
        """Where gradients are summed, [slices, P, ..]: in place where there is one slice."""
        if grad is None:
            return None
        if in_one:
            return grad[None, part.group]
        particles, samples = part.shape
        return grad.new_empty((cdiv(samples, slice_samples), particles, width))


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
    evaluation = Evaluation.of(layers, precision, Data(x, y, weights, likelihood, noise), tiles).rounded()
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
    Evaluation.of(layers, precision, Data(x), tiles).rounded().network_outputs(particles, outputs)


def precision_in_use(layers: np.ndarray, precision: int) -> int:
    """The precision that was asked for: tensor cores have them all."""
    return precision
