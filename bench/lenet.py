"""LeNet-5, all particles over one batch of images, against jax.vmap, torch.func and torch's own convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort
from bench.mlp_gradient import agree
from fastsmc.networks import Layer, LayeredNetwork


@dataclass(frozen=True)
class SecondConvolution(LayeredNetwork):
    """LeNet-5's second convolution with its activation and pool; its outputs are the classes' log odds."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        return fs.LeNet5().layers[1:2]


NETWORKS = {"LeNet-5": fs.LeNet5, "LeNet-5's conv2": SecondConvolution}


class Case(NamedTuple):
    """Network and sizes."""

    network: str
    particles: int
    batch: int

    def __str__(self) -> str:
        return f"{self.network} P={self.particles} B={self.batch}"

    @property
    def net(self) -> LayeredNetwork:
        return NETWORKS[self.network]()

    @property
    def flops(self) -> float:
        """Of value and gradient: three products per layer, but for the gradient of the images."""
        products = [int(np.prod(layer.weight_shape + layer.unpooled)) for layer in self.net.layers]
        return 2.0 * (3 * sum(products) - products[0]) * self.particles * self.batch


CASES = (
    Case("LeNet-5", 32, 128),
    Case("LeNet-5's conv2", 32, 128),
    Case("LeNet-5", 8, 128),
    Case("LeNet-5", 4, 1000),
)


def with_fastsmc(case, theta, x, y):
    post = fs.Posterior(case.net)
    return lambda: post.log_likelihood_and_grad(theta, x, y)


def jax_log_likelihood(net):
    """Of one particle of a network of ReLUs over a batch."""
    import jax
    import jax.numpy as jnp

    def log_likelihood(particle, x, y):
        h = x.reshape(-1, *net.layers[0][2:5])
        parts = list(net.unpack(particle).values())
        for k, layer in enumerate(net.layers):
            weight, bias = parts[2 * k], parts[2 * k + 1]
            if layer.is_dense:
                h = h.reshape(len(h), -1) @ weight.T + bias
            else:
                h = jax.lax.conv_general_dilated(h, weight, (1, 1), [(layer.padding, layer.padding)] * 2)
                h = h + bias[:, None, None]
            h = jax.nn.relu(h) if layer.activation else h
            if layer.pool > 1:
                window = (1, 1, layer.pool, layer.pool)
                h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, window, window, "VALID")
        log_odds = jax.nn.log_softmax(h.reshape(len(h), -1))
        return jnp.sum(jnp.take_along_axis(log_odds, y[:, None], axis=1))

    return log_likelihood


def with_jax(case, theta, x, y):
    import jax
    import jax.numpy as jnp

    log_likelihood = jax_log_likelihood(case.net)
    call = jax.jit(jax.vmap(jax.value_and_grad(log_likelihood), in_axes=(0, None, None)))
    theta, x, y = map(jnp.asarray, (theta, x, y))
    return lambda: jax.block_until_ready(call(theta, x, y))


def torch_log_likelihood(case, theta, x, y):
    """Of one particle, by torch's own modules."""
    import torch

    net = case.net
    module = net.to_torch()

    def log_likelihood(particle, x, y):
        h = torch.func.functional_call(module, net.unpack(particle), (x,))
        return -torch.nn.functional.cross_entropy(h.flatten(1), y, reduction="sum")

    return log_likelihood, *map(torch.from_numpy, (theta, x, y))


def with_torch_func(case, theta, x, y):
    import torch

    log_likelihood, theta, x, y = torch_log_likelihood(case, theta, x, y)
    call = torch.func.vmap(torch.func.grad_and_value(log_likelihood), in_dims=(0, None, None))
    return lambda: call(theta, x, y)[::-1]


def with_torch_loop(case, theta, x, y):
    """One particle after the other."""
    import torch

    log_likelihood, theta, x, y = torch_log_likelihood(case, theta, x, y)
    rows = [row.clone().requires_grad_() for row in theta]

    def call():
        values = [log_likelihood(row, x, y) for row in rows]
        grads = [torch.autograd.grad(value, row)[0] for value, row in zip(values, rows, strict=True)]
        return torch.stack(values).detach(), torch.stack(grads)

    return call


def with_torch_threads(case, theta, x, y):
    """As many particles at a time as there are cores, one thread each; images with their channels last."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from torch.nn import functional

    pool = ThreadPoolExecutor(torch.get_num_threads())
    torch.set_num_threads(1)
    layers, last = case.net.layers, torch.channels_last
    images = torch.from_numpy(x).view(-1, *layers[0][2:5]).to(memory_format=last)
    y, rows = torch.from_numpy(y), list(torch.from_numpy(theta))

    def one(row):
        parts = [part.clone().requires_grad_() for part in case.net.unpack(row).values()]
        h = images
        for layer, weight, bias in zip(layers, parts[::2], parts[1::2], strict=True):
            if layer.is_dense:
                h = functional.linear(h.flatten(1), weight, bias)
            else:
                h = functional.conv2d(h, weight.contiguous(memory_format=last), bias, padding=layer.padding)
            h = torch.relu(h) if layer.activation else h
            h = functional.max_pool2d(h, layer.pool) if layer.pool > 1 else h
        value = -functional.cross_entropy(h.flatten(1), y, reduction="sum")
        return value.detach(), torch.cat([grad.flatten() for grad in torch.autograd.grad(value, parts)])

    def call():
        values, grads = zip(*pool.map(one, rows), strict=True)
        return torch.stack(values), torch.stack(grads)

    return call


def with_torch_groups(case, theta, x, y):
    """All particles in one grouped convolution; dense layers by baddbmm."""
    import torch
    from torch.nn import functional

    net, P = case.net, len(theta)
    parts = [torch.from_numpy(part.copy()).requires_grad_() for part in net.unpack(theta).values()]
    x, y = torch.from_numpy(x), torch.from_numpy(y)

    def call():
        h = x.view(-1, *net.layers[0][2:5]).repeat(1, P, 1, 1)
        for k, layer in enumerate(net.layers):
            weight, bias = parts[2 * k], parts[2 * k + 1]
            if layer.is_dense:
                h = h if h.ndim == 3 else h.view(len(x), P, -1).transpose(0, 1)
                h = torch.baddbmm(bias[:, None], h, weight.transpose(1, 2))
            else:
                h = functional.conv2d(h, weight.flatten(0, 1), bias.flatten(), padding=layer.padding, groups=P)
            h = torch.relu(h) if layer.activation else h
            h = functional.max_pool2d(h, layer.pool) if layer.pool > 1 else h
        h = h if h.ndim == 3 else h.view(len(x), P, -1).transpose(0, 1)
        value = torch.log_softmax(h, -1).gather(-1, y.expand(P, -1)[..., None]).sum(dim=(-2, -1))
        return value.detach(), torch.autograd.grad(value.sum(), parts)

    return call


PROVIDERS = {
    OURS: with_fastsmc,
    "jax.vmap (jit)": with_jax,
    "torch.func.vmap": with_torch_func,
    "torch, a loop + autograd": with_torch_loop,
    "torch, threads + autograd": with_torch_threads,
    "torch, grouped + autograd": with_torch_groups,
}


def run(effort: Effort, quick: bool) -> None:
    """Measure all shapes."""
    bench = Bench("lenet", effort, not quick)
    for case in CASES[: 1 if quick else None]:
        rng, net = np.random.default_rng(0), case.net
        x = rng.normal(size=(case.batch, net.num_inputs)).astype(np.float32)
        y = rng.integers(0, net.num_outputs, case.batch)
        theta = rng.normal(size=(case.particles, net.num_params)) * fs.Normal("fan_in").scales(net)
        bench.case(str(case), PROVIDERS, (case, theta.astype(np.float32), x, y), agree, flops=case.flops)
