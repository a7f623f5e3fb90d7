"""What a network is: its layers, and where each parameter lies in a particle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

ACTIVATIONS = ("identity", "relu", "tanh", "gelu", "silu")


class Layer(NamedTuple):
    """One layer as the engines know it (``Layer`` in csrc/cpu/kernels.h): whole numbers only.

    Dense from in_channels * in_height * in_width inputs to out_channels outputs, or a convolution of stride 1 with a
    square kernel and zero padding; then the activation; then a maximum over squares of pool x pool.
    """

    kind: int
    activation: int
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    kernel: int
    padding: int
    pool: int

    @property
    def is_dense(self) -> bool:
        """Whether every output sees every input."""
        return self.kind == DENSE

    @property
    def num_inputs(self) -> int:
        """Values per sample that it reads."""
        return self.in_channels * self.in_height * self.in_width

    @property
    def out_height(self) -> int:
        """Rows of an output channel, after pooling."""
        return 1 if self.is_dense else (self.in_height + 2 * self.padding - self.kernel + 1) // self.pool

    @property
    def out_width(self) -> int:
        """Columns of an output channel, after pooling."""
        return 1 if self.is_dense else (self.in_width + 2 * self.padding - self.kernel + 1) // self.pool

    @property
    def num_outputs(self) -> int:
        """Values per sample that it writes."""
        return self.out_channels * self.out_height * self.out_width

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight, as in torch."""
        if self.is_dense:
            return self.out_channels, self.num_inputs
        return self.out_channels, self.in_channels, self.kernel, self.kernel


DENSE, CONVOLUTION = 0, 1


def dense(inputs: int, outputs: int, activation: str = "identity") -> Layer:
    """A fully connected layer."""
    return Layer(DENSE, ACTIVATIONS.index(activation), inputs, 1, 1, outputs, 1, 0, 1)


class Parameter(NamedTuple):
    """One tensor of a network: its name and shape as in torch, its place in a particle, and its fan-in."""

    name: str
    shape: tuple[int, ...]
    begin: int
    end: int
    fan_in: int


class Network:
    """What all networks share: everything that follows from their layers and the names of their tensors."""

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    """Of the layers' modules in torch; each has a weight and a bias."""

    @cached_property
    def layer_table(self) -> np.ndarray:
        """The layers as the engines take them, int64 [layers, 9]."""
        return np.array(self.layers, np.int64)

    @property
    def num_inputs(self) -> int:
        """Features per sample."""
        return self.layers[0].num_inputs

    @property
    def num_outputs(self) -> int:
        """Outputs per sample."""
        return self.layers[-1].num_outputs

    @property
    def num_params(self) -> int:
        """Length of a particle, d."""
        return self.parameters[-1].end

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every tensor in the order in which a particle holds them."""
        found: list[Parameter] = []
        begin = 0
        for name, layer in zip(self.names, self.layers, strict=True):
            fan_in = math.prod(layer.weight_shape[1:])
            for kind, shape in (("weight", layer.weight_shape), ("bias", layer.weight_shape[:1])):
                end = begin + math.prod(shape)
                found.append(Parameter(f"{name}.{kind}", shape, begin, end, fan_in))
                begin = end
        return tuple(found)

    def unpack(self, particles: Any) -> dict[str, Any]:
        """Views of particles ``[..., d]`` by torch's names: ``{name: [..., *shape]}``."""
        if particles.shape[-1] != self.num_params:
            raise ValueError(f"particles has {particles.shape[-1]} weights each; this network has {self.num_params}")
        lead = tuple(particles.shape[:-1])
        return {p.name: particles[..., p.begin : p.end].reshape(lead + p.shape) for p in self.parameters}

    def to_torch(self) -> Any:
        """The same network as a ``torch.nn.Module``; what ``unpack`` gives for a particle is its ``state_dict``."""
        raise NotImplementedError


@dataclass(frozen=True)
class MLP(Network):
    """A network of fully connected layers with one activation between them.

    Parameters
    ----------
    widths
        Units per layer, inputs first, outputs last: ``[784, 100, 10]``.
    activation
        ``"relu"``, ``"tanh"``, ``"gelu"`` (exact, by the normal distribution function), ``"silu"`` or ``"identity"``.

    A particle holds the parameters of ``torch.nn.Sequential(Linear, activation, Linear, ...)`` one after the other in
    the order and layout of its ``named_parameters``: each weight ``[out, in]`` by rows, then its bias.
    """

    widths: tuple[int, ...]
    activation: str = "relu"

    def __init__(self, widths: Sequence[int], activation: str = "relu") -> None:
        if len(widths) < 2 or any(int(w) != w or w < 1 for w in widths):
            raise ValueError(f"widths is {widths!r}; it must list at least two positive whole numbers of units")
        if len(widths) > 64:
            raise ValueError(f"widths has {len(widths)} entries; at most 64 are supported")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
        object.__setattr__(self, "widths", tuple(int(w) for w in widths))
        object.__setattr__(self, "activation", activation)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Dense layers, with the activation after all but the last."""
        last = len(self.widths) - 2
        return tuple(
            dense(fan_in, fan_out, self.activation if k < last else "identity")
            for k, (fan_in, fan_out) in enumerate(pairwise(self.widths))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Layers and activations alternate in the Sequential."""
        return tuple(str(2 * k) for k in range(len(self.widths) - 1))

    def to_torch(self) -> Any:
        """The same network as a ``torch.nn.Sequential``; what ``unpack`` gives for a particle is its ``state_dict``."""
        from torch import nn

        between = {
            "identity": nn.Identity,
            "relu": nn.ReLU,
            "tanh": nn.Tanh,
            "gelu": nn.GELU,
            "silu": nn.SiLU,
        }[self.activation]
        modules: list[nn.Module] = []
        for fan_in, fan_out in pairwise(self.widths):
            modules += [nn.Linear(fan_in, fan_out), between()]
        return nn.Sequential(*modules[:-1])
