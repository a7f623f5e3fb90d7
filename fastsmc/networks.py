"""What a network is: its layers, and where each parameter lies in a particle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

ACTIVATIONS = ("identity", "relu", "tanh", "gelu", "silu")


class Parameter(NamedTuple):
    """One tensor of a network: its name and shape as in torch, its place in a particle, and its fan-in."""

    name: str
    shape: tuple[int, ...]
    begin: int
    end: int
    fan_in: int


@dataclass(frozen=True)
class MLP:
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
    def activation_code(self) -> int:
        """The number by which the engines know the activation."""
        return ACTIVATIONS.index(self.activation)

    @property
    def num_inputs(self) -> int:
        """Features per sample."""
        return self.widths[0]

    @property
    def num_outputs(self) -> int:
        """Outputs per sample."""
        return self.widths[-1]

    @property
    def num_params(self) -> int:
        """Length of a particle, d."""
        return self.parameters[-1].end

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every tensor in the order in which a particle holds them."""
        found: list[Parameter] = []
        begin = 0
        for layer, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            for kind, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                end = begin + math.prod(shape)
                found.append(Parameter(f"{2 * layer}.{kind}", shape, begin, end, fan_in))
                begin = end
        return tuple(found)

    def unpack(self, particles: Any) -> dict[str, Any]:
        """Views of particles ``[..., d]`` by torch's names: ``{name: [..., *shape]}``."""
        if particles.shape[-1] != self.num_params:
            raise ValueError(f"particles has {particles.shape[-1]} weights each; this network has {self.num_params}")
        lead = tuple(particles.shape[:-1])
        return {p.name: particles[..., p.begin : p.end].reshape(lead + p.shape) for p in self.parameters}

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
