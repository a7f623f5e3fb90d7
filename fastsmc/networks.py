"""What a network is: its layers, and where each parameter lies in a particle."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fastsmc.densities import Density
    from fastsmc.likelihoods import Likelihood

ACTIVATIONS = ("identity", "relu", "tanh", "gelu", "silu")
_TORCH_ACTIVATIONS = ("Identity", "ReLU", "Tanh", "GELU", "SiLU")


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

    def __str__(self) -> str:
        kind = "dense" if self.is_dense else f"convolution {self.kernel} x {self.kernel}"
        return f"{kind} {self.num_inputs} -> {self.num_outputs} {ACTIVATIONS[self.activation]}"

    @property
    def is_dense(self) -> bool:
        """Whether every output sees every input."""
        return self.kind == DENSE

    @property
    def num_inputs(self) -> int:
        """Values per sample that it reads."""
        return self.in_channels * self.in_height * self.in_width

    @property
    def unpooled(self) -> tuple[int, int]:
        """Height and width of an output channel before pooling."""
        if self.is_dense:
            return 1, 1
        return tuple(size + 2 * self.padding - self.kernel + 1 for size in (self.in_height, self.in_width))

    @property
    def out_height(self) -> int:
        """Rows of an output channel, after pooling."""
        return self.unpooled[0] // self.pool

    @property
    def out_width(self) -> int:
        """Columns of an output channel, after pooling."""
        return self.unpooled[1] // self.pool

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

    @property
    def num_params(self) -> int:
        """Weights and biases."""
        return math.prod(self.weight_shape) + self.out_channels


DENSE, CONVOLUTION = 0, 1
MAX_LAYERS = 64
"""Of a network that the kernels take."""
MAX_POOL = 16
"""Pooled squares are at most this wide: the engine keeps the place of a maximum in a byte."""


def dense(inputs: int, outputs: int, activation: str = "identity") -> Layer:
    """A fully connected layer."""
    return Layer(DENSE, ACTIVATIONS.index(activation), inputs, 1, 1, outputs, 1, 0, 1)


def convolution(
    image: tuple[int, int, int], channels: int, kernel: int, activation: str, *, padding: int = 0, pool: int = 1
) -> Layer:
    """A convolution of images (channels, height, width), its activation, and a max-pool."""
    in_channels, height, width = image
    _check_activation(activation)
    channels = _whole("channels", channels, 1)
    kernel, padding, pool = _whole("kernel", kernel, 1), _whole("padding", padding, 0), _whole("pool", pool, 1)
    if pool > MAX_POOL:
        raise ValueError(f"pool is {pool}; squares of at most {MAX_POOL} x {MAX_POOL} are supported")
    layer = Layer(
        CONVOLUTION, ACTIVATIONS.index(activation), in_channels, height, width, channels, kernel, padding, pool
    )
    if min(layer.out_height, layer.out_width) < 1:
        raise ValueError(
            f"the image is {height} x {width}; a {kernel} x {kernel} filter with padding {padding}, pooled by {pool}, "
            f"needs at least {kernel + pool - 1 - 2 * padding} in each direction"
        )
    return layer


class Parameter(NamedTuple):
    """One tensor of a network: its name and shape as in torch, its place in a particle, and its fan-in."""

    name: str
    shape: tuple[int, ...]
    begin: int
    end: int
    fan_in: int


class Network(ABC):
    """What all networks share: what follows from the tensors that are sampled."""

    parameters: tuple[Parameter, ...]
    """Every tensor in the order in which a particle holds them."""
    num_inputs: int
    """Features per sample."""
    num_outputs: int
    """Outputs per sample."""
    input_shape: tuple[int, ...]
    """Of a sample."""
    fixed: tuple[str, ...] = ()
    """Names of the tensors that are not sampled."""
    path: str = "fused kernels"
    """How it is computed, and why."""

    @property
    def num_params(self) -> int:
        """Length of a particle, d."""
        return self.parameters[-1].end

    def unpack(self, particles: Any) -> dict[str, Any]:
        """Views of particles ``[..., d]`` by torch's names: ``{name: [..., *shape]}``."""
        if particles.shape[-1] != self.num_params:
            raise ValueError(f"particles has {particles.shape[-1]} weights each; this network has {self.num_params}")
        lead = tuple(particles.shape[:-1])
        return {p.name: particles[..., p.begin : p.end].reshape(lead + p.shape) for p in self.parameters}

    @property
    def still(self) -> dict[str, np.ndarray]:
        """Tensors that are not sampled, by name: fixed parameters and buffers."""
        return {}

    @abstractmethod
    def to_torch(self) -> Any:
        """The same network as a ``torch.nn.Module``; what ``unpack`` gives for a particle is of its ``state_dict``."""

    @abstractmethod
    def density(self, likelihood: Likelihood, precision: str, backend: str | None) -> Density:
        """What computes log-likelihoods of this network's particles."""


class LayeredNetwork(Network):
    """A network of layers that the kernels know."""

    layers: tuple[Layer, ...]

    @cached_property
    def modules(self) -> tuple[tuple[str, tuple], ...]:
        """Of the same network as a ``torch.nn.Sequential``: the name of each module's class, and its arguments."""
        found: list[tuple[str, tuple]] = []
        images = not self.layers[0].is_dense
        if images:  # rows of images, or images
            found += [("Flatten", ()), ("Unflatten", (1, self.layers[0][2:5]))]
        for k, layer in enumerate(self.layers):
            if layer.is_dense:
                found += [("Flatten", ())] * images + [("Linear", (layer.num_inputs, layer.out_channels))]
            else:
                found.append(("Conv2d", (layer.in_channels, layer.out_channels, layer.kernel, 1, layer.padding)))
            images = not layer.is_dense
            last_and_linear = k + 1 == len(self.layers) and layer.activation == 0
            found += [(_TORCH_ACTIVATIONS[layer.activation], ())] * (not last_and_linear)
            found += [("MaxPool2d", (layer.pool,))] * (layer.pool > 1)
        return tuple(found)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The name of each layer's module, before ``.weight`` and ``.bias``."""
        return tuple(str(k) for k, (module, _) in enumerate(self.modules) if module in ("Linear", "Conv2d"))

    @cached_property
    def layer_table(self) -> np.ndarray:
        """The layers as the engines take them, int64 [layers, 9]."""
        return np.array(self.layers, np.int64)

    @cached_property
    def num_inputs(self) -> int:
        """See `Network`."""
        return self.layers[0].num_inputs

    @cached_property
    def num_outputs(self) -> int:
        """See `Network`."""
        return self.layers[-1].num_outputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See `Network`."""
        first = self.layers[0]
        return (first.num_inputs,) if first.is_dense else (first.in_channels, first.in_height, first.in_width)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every tensor in the order in which a particle holds them: of each layer the weight, then the bias."""
        shapes = [
            (f"{prefix}.{kind}", shape, math.prod(layer.weight_shape[1:]))
            for prefix, layer in zip(self.prefixes, self.layers, strict=True)
            for kind, shape in (("weight", layer.weight_shape), ("bias", layer.weight_shape[:1]))
        ]
        return lay_out(shapes)

    def to_torch(self) -> Any:
        """The same network as a ``torch.nn.Sequential``."""
        from torch import nn

        return nn.Sequential(*(getattr(nn, name)(*arguments) for name, arguments in self.modules))

    def density(self, likelihood: Likelihood, precision: str, backend: str | None) -> Density:
        """By the kernels, if they know the likelihood."""
        from fastsmc.densities import Fused, through_torch

        if likelihood.code is None:
            return through_torch(self, likelihood, f"the kernels do not know the {likelihood.name} likelihood")
        if len(self.layers) > MAX_LAYERS:
            return through_torch(self, likelihood, f"the kernels take at most {MAX_LAYERS} layers")
        return Fused(self, likelihood, precision, backend)


def lay_out(tensors: Iterable[tuple[str, tuple[int, ...], int]]) -> tuple[Parameter, ...]:
    """Tensors one after the other in a particle, from their names, shapes and fan-ins."""
    found, begin = [], 0
    for name, shape, fan_in in tensors:
        found.append(Parameter(name, tuple(shape), begin, begin + math.prod(shape), fan_in))
        begin = found[-1].end
    return tuple(found)


@dataclass(frozen=True)
class MLP(LayeredNetwork):
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
        _check_activation(activation)
        object.__setattr__(self, "widths", tuple(int(w) for w in widths))
        object.__setattr__(self, "activation", activation)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Dense layers, with the activation after all but the last."""
        last = len(self.widths) - 2
        return tuple(
            dense(fan_in, fan_out, self.activation if k < last else "identity")
            for k, (fan_in, fan_out) in enumerate(pairwise(self.widths))
        )


@dataclass(frozen=True)
class LeNet5(LayeredNetwork):
    """Convolutions of 6 and 16 filters of 5 x 5, each max-pooled by 2, then layers of 120 and 84 units and the classes.

    Parameters
    ----------
    in_channels
        Of the images, 1 for grey and 3 for colour.
    num_classes
        Outputs.
    activation
        As for ``MLP``; after every layer but the last.
    image_size
        Height and width of the images: 28 for MNIST, 32 for CIFAR.

    The first convolution pads the images by 2. Data are images ``[B, in_channels, image_size, image_size]`` or their
    rows ``[B, in_channels * image_size**2]``. A particle holds the parameters of ``to_torch()`` in the order and layout
    of its ``named_parameters``.
    """

    in_channels: int = 1
    num_classes: int = 10
    activation: str = "relu"
    image_size: int = 28

    def __post_init__(self) -> None:
        for name, least in (("in_channels", 1), ("num_classes", 1), ("image_size", 12)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        _check_activation(self.activation)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Two convolutions and three dense layers."""
        size, act = self.image_size, self.activation
        first = convolution((self.in_channels, size, size), 6, 5, act, padding=2, pool=2)
        second = convolution((6, first.out_height, first.out_width), 16, 5, act, pool=2)
        return (
            *(first, second),
            *(dense(second.num_outputs, 120, act), dense(120, 84, act), dense(84, self.num_classes)),
        )


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Real) or value % 1 != 0 or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return int(value)


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class Layers(LayeredNetwork):
    """Layers of a module: their tensors have the names that they have there.

    Parameters
    ----------
    layers
        One after the other.
    names
        The name of each layer's module, before ``.weight`` and ``.bias``.
    module
        What `to_torch` copies; without it the tensors there have other names, in the same order.
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    module: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(Layer(*map(int, layer)) for layer in self.layers))
        object.__setattr__(self, "names", tuple(self.names))

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name}: {layer}" for name, layer in zip(self.names, self.layers, strict=True))
        return f"Layers({kinds})"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """See `LayeredNetwork`."""
        return self.names

    def to_torch(self) -> Any:
        """The same network as a ``torch.nn.Module``."""
        return super().to_torch() if self.module is None else copy.deepcopy(self.module)
