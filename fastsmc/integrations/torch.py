"""For torch: the ops as custom operators, which ``torch.compile`` keeps in its graphs, and a differentiable density.

>>> likelihood = log_likelihood(net, x, y)
>>> value = torch.compile(likelihood)(particles)  # [P]
>>> value.sum().backward()

The operators are ``torch.ops.fastsmc.*`` too, on any device that has an engine; they check what they are called with as
`fastsmc.ops` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastsmc import ops
from fastsmc.integrations import in_kernels
from fastsmc.likelihoods import LIKELIHOODS, Gaussian, Likelihood
from fastsmc.networks import Layer, LayeredNetwork


@torch.library.custom_op("fastsmc::normalize_log_weights", mutates_args=())
def normalize_log_weights(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [..., P], log-sum and ESS [...]: see `fastsmc.normalize_log_weights`.

    They are differentiable by torch.autograd in reverse mode, not by torch.func.
    """
    return tuple(ops.normalize_log_weights(log_weights))


@normalize_log_weights.register_fake
def _(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row = log_weights.new_empty(log_weights.shape[:-1])
    return torch.empty_like(log_weights, memory_format=torch.contiguous_format), row, torch.empty_like(row)


def _keep_weights(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[0], output[2])


def _backward_of_weights(
    ctx: torch.autograd.function.FunctionCtx, of_weights: Tensor, of_log_sum: Tensor, of_ess: Tensor
) -> Tensor:
    """By w_i = exp(l_i) / sum_j exp(l_j) and ess = 1 / sum_i w_i^2."""
    weights, ess = ctx.saved_tensors
    slope = of_weights - 2 * (of_ess * ess**2)[..., None] * weights
    return weights * (slope - (slope * weights).sum(-1, keepdim=True) + of_log_sum[..., None])


normalize_log_weights.register_autograd(_backward_of_weights, setup_context=_keep_weights)


@torch.library.custom_op("fastsmc::resample", mutates_args=())
def resample(
    log_weights: Tensor, u: Tensor, scheme: str = "systematic", log: bool = True, num_samples: int | None = None
) -> Tensor:
    """Ancestors [..., M], int64: see `fastsmc.resample`."""
    return ops.resample(log_weights, u, scheme, log, num_samples)


@resample.register_fake
def _(
    log_weights: Tensor, u: Tensor, scheme: str = "systematic", log: bool = True, num_samples: int | None = None
) -> Tensor:
    drawn = u.shape[-1] if ops.SCHEMES[scheme] else log_weights.shape[-1]
    samples = drawn if num_samples is None else num_samples
    return log_weights.new_empty((*log_weights.shape[:-1], samples), dtype=torch.int64)


@torch.library.custom_op("fastsmc::adaptive_resample", mutates_args=())
def adaptive_resample(
    log_weights: Tensor, u: Tensor, threshold: float = 0.5, scheme: str = "systematic"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ancestors, offspring and log weights [..., P], log-sum and ESS [...]: see `fastsmc.adaptive_resample`."""
    return tuple(ops.adaptive_resample(log_weights, u, threshold, scheme))


@adaptive_resample.register_fake
def _(
    log_weights: Tensor, u: Tensor, threshold: float = 0.5, scheme: str = "systematic"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ancestors = log_weights.new_empty(log_weights.shape, dtype=torch.int64)
    row = log_weights.new_empty(log_weights.shape[:-1])
    normalized = torch.empty_like(log_weights, memory_format=torch.contiguous_format)
    return ancestors, torch.empty_like(ancestors), normalized, row, torch.empty_like(row)


@torch.library.custom_op("fastsmc::offspring", mutates_args=())
def offspring(a: Tensor, num_particles: int) -> Tensor:
    """Counts [..., P] of ancestors [..., M], int64: see `fastsmc.offspring`."""
    return ops.offspring(a, num_particles)


@offspring.register_fake
def _(a: Tensor, num_particles: int) -> Tensor:
    return a.new_empty((*a.shape[:-1], num_particles), dtype=torch.int64)


@torch.library.custom_op("fastsmc::permute_ancestors", mutates_args=())
def permute_ancestors(a: Tensor) -> Tensor:
    """Ancestors [..., P] in an order in which particles can be gathered in place: see `fastsmc.permute_ancestors`."""
    return ops.permute_ancestors(a)


@permute_ancestors.register_fake
def _(a: Tensor) -> Tensor:
    return a.new_empty(a.shape, dtype=torch.int64)


@torch.library.custom_op("fastsmc::gather_particles_", mutates_args=("particles",))
def gather_particles_(particles: Tensor, a: Tensor) -> None:
    """Copy each ancestor into its slot, in place: see `fastsmc.gather_particles`."""
    ops.gather_particles(particles, a, particles)


@torch.library.custom_op("fastsmc::log_likelihood", mutates_args=())
def _value(
    particles: Tensor, x: Tensor, y: Tensor, layers: list[int], likelihood: str, noise: float, precision: str
) -> Tensor:
    return ops.log_likelihood(*_model(layers, likelihood, noise), particles, x, y, precision=precision)


@_value.register_fake
def _(
    particles: Tensor, x: Tensor, y: Tensor, layers: list[int], likelihood: str, noise: float, precision: str
) -> Tensor:
    return particles.new_empty(particles.shape[:1], dtype=torch.float64)


@torch.library.custom_op("fastsmc::log_likelihood_and_grad", mutates_args=())
def _value_and_grad(
    particles: Tensor, x: Tensor, y: Tensor, layers: list[int], likelihood: str, noise: float, precision: str
) -> tuple[Tensor, Tensor]:
    model = _model(layers, likelihood, noise)
    return ops.log_likelihood_and_grad(*model, particles.detach(), x, y, precision=precision)


@_value_and_grad.register_fake
def _(
    particles: Tensor, x: Tensor, y: Tensor, layers: list[int], likelihood: str, noise: float, precision: str
) -> tuple[Tensor, Tensor]:
    return particles.new_empty(particles.shape[:1], dtype=torch.float64), particles.new_empty(particles.shape)


def _at_once(call: Callable[..., Any], info: Any, in_dims: tuple, particles: Tensor, *rest: Any) -> tuple[Any, Any]:
    """What ``torch.func.vmap`` makes of a density: one call for all that is mapped over, which are particles."""
    if in_dims[1:3] != (None, None):
        raise NotImplementedError("x and y are mapped over by vmap; all particles must share them")
    mapped = particles.movedim(in_dims[0], 0)
    found = call(mapped.flatten(0, 1), *rest)
    split = pytree.tree_map(lambda part: part.unflatten(0, mapped.shape[:2]), found)
    return split, pytree.tree_map(lambda _: 0, split)


_value.register_vmap(partial(_at_once, _value))

ONCE = "log_likelihood is differentiable once, in reverse mode; it must not be differentiated twice or in forward mode"


def _density(particles: Tensor, *rest: Any) -> Tensor:
    """The value, of whose derivatives there is the gradient."""
    if not (torch.is_grad_enabled() and particles.requires_grad):
        return _Value.apply(particles, *rest)
    kind = _CompiledDensity if torch.compiler.is_compiling() else _Density
    return kind.apply(particles, *rest)[0]


class _Value(torch.autograd.Function):
    """The value, where no gradient is asked for: a function, so that forward mode does not take it for a constant."""

    @staticmethod
    def forward(
        particles: Tensor, x: Tensor, y: Tensor, layers: list[int], likelihood: str, noise: float, precision: str
    ) -> Tensor:
        return _value(particles, x, y, layers, likelihood, noise, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(ONCE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        return _at_once(_density, info, in_dims, *arguments)


class _Density(torch.autograd.Function):
    """The value and its gradient, which torch.autograd and the transforms of torch.func take for a derivative."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _value_and_grad(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, of_value: Tensor, _: Tensor | None) -> tuple:
        grad = _Gradient.apply(*ctx.saved_tensors)
        return of_value[:, None].to(grad.dtype) * grad, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(ONCE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        return _at_once(_Density.apply, info, in_dims, *arguments)


class _CompiledDensity(_Density):
    """The same for torch.compile, which takes no function with a ``jvp`` of its own."""

    jvp = torch.autograd.Function.jvp


class _Gradient(torch.autograd.Function):
    """The gradient as it was saved: a function of the particles, so that it is not taken for a constant."""

    @staticmethod
    def forward(particles: Tensor, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise NotImplementedError(ONCE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[Tensor, int | None]:
        return _Gradient.apply(*tensors), in_dims[1]


def log_likelihood(
    network: LayeredNetwork,
    x: Tensor,
    y: Tensor,
    likelihood: str | Likelihood = "categorical",
    precision: str = "highest",
) -> Callable[[Tensor], Tensor]:
    """The log-likelihood of a batch as a function of particles [P, d], float64 [P], or of one [d]; differentiable once.

    That is in reverse mode, by the particles alone; other derivatives are refused. Under ``torch.func.vmap`` it is one
    call for all that is mapped over, and so is its gradient. ``torch.compile`` takes the function and its backward; a
    transform of torch.func that differentiates it has to be hidden: ``torch.compiler.disable(vmap(grad(of)))``.

    Parameters
    ----------
    network, likelihood, precision
        As for `fastsmc.Posterior`, of those that the kernels compute.
    x : tensor [B, inputs] or [B, ...]
    y : tensor [B] or [B, outputs]
        As the likelihood takes it.
    """
    for name, data in (("x", x), ("y", y)):
        if data.requires_grad:
            raise ValueError(f"{name} requires grad; it must be detached, for only particles have a derivative here")
    density = in_kernels(network, likelihood, precision)
    settings = (network.layer_table.ravel().tolist(), density.name, density.noise, precision)

    def of(particles: Tensor) -> Tensor:
        if particles.ndim == 1:
            return of(particles[None])[0]
        return _density(particles, x, y, *settings)

    return of


class _Table(LayeredNetwork):
    """A network of which nothing but its layers is known."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = tuple(Layer(*row) for row in np.reshape(layers, (-1, len(Layer._fields))).tolist())


_networks = cache(_Table)


def _model(layers: list[int], likelihood: str, noise: float) -> tuple[LayeredNetwork, Likelihood]:
    kind = LIKELIHOODS[likelihood]
    return _networks(tuple(layers)), kind(noise) if kind is Gaussian else kind()
