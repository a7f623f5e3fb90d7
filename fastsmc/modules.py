"""Torch modules as networks: lowered to the kernels' layers where they are a chain of these, or through torch.func."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastsmc.densities import Density, Embedding, Functional, Fused, through_torch
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import (
    ACTIVATIONS,
    MAX_POOL,
    Layer,
    Layers,
    Network,
    Parameter,
    convolution,
    dense,
    lay_out,
)

if TYPE_CHECKING:
    from torch import Tensor


def from_torch(module: nn.Module, input_shape: Sequence[int] | None = None, fixed: Iterable[str] = ()) -> Network:
    """A network from a torch module: by the kernels where they have all its layers, else through ``torch.func``.

    ``network.path`` says which, and why. The kernels have chains of ``Linear``, ``Conv2d`` (stride 1, square filters,
    zero padding), ReLU, tanh, GELU, SiLU, ``MaxPool2d`` of squares behind a convolution, ``Flatten`` and reshapes that
    do the same, as modules or functions. All else runs for all particles at once through ``vmap``, ``grad`` and
    ``functional_call``, in pieces that fit in memory.

    Parameters
    ----------
    module
        Takes a batch ``[B, *input_shape]`` to outputs [B, K]. It is copied. Every parameter is sampled, unless it is
        fixed.
    input_shape
        Of one sample. May be left out where the first layer is a ``Linear``. Inputs of a module that starts with an
        ``Embedding`` are whole numbers.
    fixed
        Names of parameters, or patterns as in a shell (``"encoder.*"``), that keep the values that they have in the
        module, which makes the network partially Bayesian; so do those with ``requires_grad=False``.

    Raises
    ------
    ValueError
        If the module has dropout or batch normalisation in training mode (call ``module.eval()``: batches would make
        the density of a sample depend on others), does not take ``input_shape``, or has nothing to sample; or if a
        name in ``fixed`` matches no parameter.
    """
    module = copy.deepcopy(module)
    _refuse_randomness(module)
    held = _held(module, tuple(fixed))
    shape = _input_shape(module, input_shape)
    outputs = _num_outputs(module, shape)
    try:
        lowered = _lower(module, shape)
    except _NotLayersError as reason:
        return TorchNetwork(module, shape, outputs, held, str(reason))
    names = [f"{name}.{kind}" for name in lowered.names for kind in ("weight", "bias")]
    if [name for name, _ in module.named_parameters()] == names and not held:
        return lowered
    return EmbeddedNetwork(lowered, module, held)


def _refuse_randomness(module: nn.Module) -> None:
    for name, part in module.named_modules():
        random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        if part.training and (random or isinstance(part, nn.modules.batchnorm._BatchNorm)):
            raise ValueError(
                f"module has {type(part).__name__} in training mode at {name!r}, which makes the density of a sample "
                "random or dependent on its batch; it must be in evaluation mode, as after module.eval()"
            )


def _held(module: nn.Module, fixed: tuple[str, ...]) -> tuple[str, ...]:
    names = [name for name, _ in module.named_parameters()]
    for pattern in fixed:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"fixed has {pattern!r}; it must match a parameter of the module: {', '.join(names)}")
    held = tuple(
        name
        for name, p in module.named_parameters()
        if not p.requires_grad or any(fnmatchcase(name, pattern) for pattern in fixed)
    )
    if len(held) == len(names):
        raise ValueError(f"fixed is {fixed!r}; at least one parameter of the module must be left to sample")
    return held


def _input_shape(module: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        return tuple(int(size) for size in given)
    first = next((part for part in module.modules() if next(part.children(), None) is None), None)
    if not isinstance(first, nn.Linear):
        raise ValueError(
            f"input_shape is None, and the module starts with {type(first).__name__}; it must be the shape of a sample"
        )
    return (first.in_features,)


def _num_outputs(module: nn.Module, shape: tuple[int, ...]) -> int:
    try:
        x = _as_inputs(module, torch.zeros(2, *shape))
        with torch.no_grad():  # vmap refuses random numbers
            outputs = torch.vmap(lambda _: module(x))(torch.zeros(1))[0]
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if "randomness" in str(error):
            raise ValueError("module draws random numbers; its outputs must be a function of the weights") from None
        raise ValueError(f"input_shape is {shape}, which the module does not take: {error}") from None
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or len(outputs) != 2:
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"module makes {found} of two samples; it must be a tensor [2, outputs]")
    return outputs.shape[1]


def _as_inputs(module: nn.Module, x: Tensor) -> Tensor:
    first = next((part for part in module.modules() if next(part.children(), None) is None), None)
    return x.long() if isinstance(first, nn.Embedding) else x


class ModuleNetwork(Network):
    """A module, of which some parameters may be fixed.

    Attributes
    ----------
    module
        In evaluation mode, or without anything that depends on it.
    """

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, ...], num_outputs: int, fixed: tuple[str, ...], path: str
    ) -> None:
        self.module, self.fixed, self.path = module, fixed, path
        self.input_shape, self.num_inputs, self.num_outputs = input_shape, math.prod(input_shape), num_outputs
        self.parameters = _sampled(module, fixed)

    def to_torch(self) -> nn.Module:
        """A copy of the module."""
        module = copy.deepcopy(self.module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in self.fixed)
        return module

    @property
    def still(self) -> dict[str, np.ndarray]:
        """See `Network`."""
        return {name: value.detach().cpu().numpy() for name, value in self._held.items()}

    @property
    def _held(self) -> dict[str, Tensor]:
        """What is not sampled: fixed parameters and buffers."""
        return {name: self.module.get_parameter(name) for name in self.fixed} | dict(self.module.named_buffers())


class TorchNetwork(ModuleNetwork):
    """A module as it is, called through ``torch.func``."""

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, ...], num_outputs: int, fixed: tuple[str, ...], reason: str
    ) -> None:
        super().__init__(module.requires_grad_(False), input_shape, num_outputs, fixed, f"torch.func: {reason}")
        self._placed: dict[torch.device, dict[str, Tensor]] = {}
        firsts = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
        self._names = {
            f"{prefix}{'.' * bool(prefix)}{name}": firsts[id(t)]
            for prefix, part in module.named_modules()
            for name, t in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        }

    def __repr__(self) -> str:
        return f"{type(self.module).__name__}({self.num_params:,} weights, {self.path})"

    def density(self, likelihood: Likelihood, precision: str, backend: str | None) -> Density:
        """See `Network`."""
        return Functional(self, likelihood)

    def call(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs [B, K] for rows [B, inputs], with these tensors in the place of the module's."""
        inputs = _as_inputs(self.module, x.reshape(len(x), *self.input_shape))
        placed = self._held_on(x.device) | dict(tensors)
        named = {name: placed[first] for name, first in self._names.items()}
        with _rules_of_vmap():  # tied here, since torch loses the tensors of a module that has two names
            return torch.func.functional_call(self.module, named, (inputs,), tie_weights=False)

    def _held_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._placed:
            self._placed[device] = {name: value.to(device) for name, value in self._held.items()}
        return self._placed[device]


@contextmanager
def _rules_of_vmap() -> Iterator[None]:
    """Attention by operations that vmap has rules for."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class EmbeddedNetwork(ModuleNetwork):
    """Layers of which some tensors are fixed, or absent, which is a bias of zero, or stand in another order.

    Attributes
    ----------
    whole
        The layers, with all their tensors.
    template
        float32 [whole.num_params]: the values of what is not sampled.
    columns
        int64 [num_params]: where the whole network's particle has each weight.
    """

    def __init__(self, whole: Layers, module: nn.Module, fixed: tuple[str, ...]) -> None:
        path = "fused kernels, beside tensors that are not sampled"
        super().__init__(module, whole.input_shape, whole.num_outputs, fixed, path)
        self.whole = whole
        places = {p.name: slice(p.begin, p.end) for p in whole.parameters}
        self.template = torch.zeros(whole.num_params)
        for name, value in module.named_parameters():
            self.template[places[name]] = value.detach().float().flatten()
        numbers = torch.arange(whole.num_params)
        self.columns = torch.cat([numbers[places[p.name]] for p in self.parameters])

    def __repr__(self) -> str:
        return f"{self.whole}, {self.num_params:,} of its weights sampled"

    def density(self, likelihood: Likelihood, precision: str, backend: str | None) -> Density:
        """See `Network`."""
        if likelihood.code is None:
            return through_torch(self, likelihood, f"the kernels do not know the {likelihood.name} likelihood")
        return Embedding(self, Fused(self.whole, likelihood, precision, backend), self.template, self.columns)


def _sampled(module: nn.Module, fixed: tuple[str, ...]) -> tuple[Parameter, ...]:
    """The tensors that are not fixed. A bias has the fan-in of its weight; other vectors have one of one."""
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}

    def fan_in(name: str) -> int:
        return math.prod(shapes.get(name.removesuffix("bias") + "weight", shapes[name])[1:])

    return lay_out((name, shape, fan_in(name)) for name, shape in shapes.items() if name not in fixed)


class _NotLayersError(Exception):
    """Why a module is not a chain of the kernels' layers."""


def _lower(module: nn.Module, shape: tuple[int, ...]) -> Layers:
    try:
        graph = fx.symbolic_trace(module)
        ShapeProp(graph).propagate(_as_inputs(module, torch.zeros(2, *shape)))
    except Exception as error:
        raise _NotLayersError(f"it cannot be traced: {str(error).splitlines()[0]}") from None
    parts, chain, last = dict(module.named_modules()), _Chain(shape), None
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            last = node if last is None else None
            continue
        if node.op != "output" and "tensor_meta" not in node.meta:
            continue  # sizes, for reshapes
        tensors = [n for n in node.all_input_nodes if "tensor_meta" in n.meta]
        if tensors != [last]:
            raise _NotLayersError(f"{node.name!r} does not take the output of the step before it, and that alone")
        if node.op == "output":
            break
        part = parts[node.target] if node.op == "call_module" else None
        step = _STEPS.get(type(part) if part is not None else node.target)
        if step is None:
            what = f"{type(part).__name__} at {node.target!r}" if part is not None else f"{node.name!r}"
            raise _NotLayersError(f"no kernel has {what}")
        shape = tuple(node.meta["tensor_meta"].shape[1:])
        step(chain, _Node(str(node.target), part, node.args[1:], node.kwargs, shape))
        last = node
    if not chain.layers:
        raise _NotLayersError("it has no layer with weights")
    used = [id(t) for name in chain.names for t in parts[name].parameters()]
    if len(set(used)) < len(used):
        raise _NotLayersError("it uses a tensor twice")
    return Layers(tuple(chain.layers), tuple(chain.names), module)


class _Node(NamedTuple):
    """A step of a traced module: its module, if it is one, or its arguments; and the shape of its output."""

    name: str
    part: nn.Module | None
    arguments: tuple
    options: dict[str, Any]
    shape: tuple[int, ...]

    def settings(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """Arguments by name, from the module or the call."""
        if self.part is not None:
            return {name: getattr(self.part, name, defaults.get(name)) for name in (*names, *defaults)}
        order = (*names, *defaults)
        return defaults | dict(zip(order, self.arguments, strict=False)) | self.options


class _Chain:
    """The layers of a module, as its steps are read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.layers: list[Layer] = []
        self.names: list[str] = []

    def _last(self, node: _Node) -> Layer:
        if not self.layers:
            raise _NotLayersError(f"{node.name!r} comes before the first layer with weights")
        return self.layers[-1]

    def linear(self, node: _Node) -> None:
        """A dense layer."""
        if len(self.shape) != 1:
            raise _NotLayersError(f"{node.name!r} is applied along the last axis of {self.shape}")
        self.layers.append(dense(node.part.in_features, node.part.out_features))
        self.names.append(node.name)
        self.shape = node.shape

    def convolution(self, node: _Node) -> None:
        """A convolution of images."""
        c = node.part
        kernel, padding = c.kernel_size[0], c.padding
        if padding == "same":
            padding = ((kernel - 1) // 2,) * 2 if kernel % 2 else None
        elif padding == "valid":
            padding = (0, 0)
        usual = c.stride == c.dilation == (1, 1) and c.groups == 1 and c.padding_mode == "zeros"
        square = c.kernel_size == (kernel, kernel) and padding is not None and padding == (padding[0],) * 2
        if not (usual and square and len(self.shape) == 3):
            raise _NotLayersError(f"{node.name!r} is no convolution of stride 1 with square filters and zero padding")
        self.layers.append(convolution(self.shape, c.out_channels, kernel, "identity", padding=padding[0]))
        self.names.append(node.name)
        self.shape = node.shape

    def pool(self, node: _Node) -> None:
        """A maximum over squares, behind a convolution."""
        s, layer = node.settings("kernel_size", stride=None, padding=0, dilation=1, ceil_mode=False), self._last(node)
        size, stride = ((v, v) if isinstance(v, int) else tuple(v or ()) for v in (s["kernel_size"], s["stride"]))
        plain = (s["padding"], s["dilation"], bool(s["ceil_mode"])) in ((0, 1, False), ((0, 0), (1, 1), False))
        square = size[0] == size[1] <= MAX_POOL and stride in ((), size)
        if layer.is_dense or layer.pool > 1 or len(self.shape) != 3 or not (plain and square):
            raise _NotLayersError(f"{node.name!r} is not one maximum over squares, side by side, behind a convolution")
        self.layers[-1] = layer._replace(pool=size[0])
        self.shape = node.shape

    def activate(self, code: int, node: _Node) -> None:
        """An activation; behind a maximum if it is monotone, so that they can change places."""
        layer = self._last(node)
        if node.settings(approximate="none", inplace=False).get("approximate") not in (None, "none"):
            raise _NotLayersError(f"{node.name!r} is an approximation of GELU")
        if layer.activation or (layer.pool > 1 and code not in _MONOTONE):
            raise _NotLayersError(f"{node.name!r} does not follow a linear layer or convolution")
        self.layers[-1] = layer._replace(activation=code)

    def reshape(self, node: _Node) -> None:
        """The same numbers of each sample in another shape."""
        if math.prod(node.shape) != math.prod(self.shape) or len(node.shape) not in (1, 3):
            raise _NotLayersError(f"{node.name!r} reshapes {self.shape} to {node.shape}")
        self.shape = node.shape

    def nothing(self, node: _Node) -> None:
        """A step that does nothing, as dropout in evaluation mode."""
        if node.part is None and node.settings(p=0.5, training=True)["training"]:
            raise _NotLayersError(f"{node.name!r} is random")


def _activation(name: str) -> Callable[[_Chain, _Node], None]:
    return lambda chain, node: chain.activate(ACTIVATIONS.index(name), node)


_MONOTONE = tuple(map(ACTIVATIONS.index, ("relu", "tanh")))
_STEPS: dict[Any, Callable[[_Chain, _Node], None]] = {
    nn.Linear: _Chain.linear,
    nn.Conv2d: _Chain.convolution,
    **dict.fromkeys((nn.MaxPool2d, functional.max_pool2d, torch.max_pool2d), _Chain.pool),
    **dict.fromkeys((nn.ReLU, functional.relu, torch.relu, "relu"), _activation("relu")),
    **dict.fromkeys((nn.Tanh, functional.tanh, torch.tanh, "tanh"), _activation("tanh")),
    **dict.fromkeys((nn.GELU, functional.gelu), _activation("gelu")),
    **dict.fromkeys((nn.SiLU, functional.silu), _activation("silu")),
    **dict.fromkeys(
        (nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, "flatten", "view", "reshape"), _Chain.reshape
    ),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, functional.dropout), _Chain.nothing),
}
