"""Log-likelihood and gradient of all particles over one batch, against jax.vmap, torch.func, plain torch."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort
from fastsmc import ops


class Case(NamedTuple):
    """Widths of the network, and sizes."""

    widths: tuple[int, ...]
    particles: int
    batch: int
    likelihood: str = "categorical"
    precision: str = "highest"

    def __str__(self) -> str:
        lower = f" {self.precision}" * (self.precision != "highest")
        return f"{'-'.join(map(str, self.widths))} P={self.particles} B={self.batch} {self.likelihood}{lower}"

    @property
    def in_use(self) -> bool:
        """Whether this machine computes it at its precision."""
        return ops.precision_in_use(fs.MLP(self.widths), self.precision) == self.precision

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of every layer."""
        return list(zip(self.widths, self.widths[1:], strict=False))

    @property
    def flops(self) -> float:
        """Of value and gradient: three products per layer, but for the gradient of the inputs x."""
        products = sum((3 if k else 2) * i * o for k, (i, o) in enumerate(self.layers))
        return 2.0 * products * self.particles * self.batch

    @property
    def bounds(self) -> np.ndarray:
        """Where each weight and each bias ends in a particle."""
        return np.cumsum([size for i, o in self.layers for size in (i * o, o)])


CASES = (
    Case((64, 32, 10), 64, 1437),
    Case((13, 50, 1), 64, 506, "gaussian"),
    Case((784, 100, 10), 8, 64),
    Case((784, 100, 10), 64, 64),
    Case((784, 100, 10), 8, 600),
    Case((784, 100, 10), 64, 600),
    Case((784, 100, 10), 512, 64),
    Case((784, 100, 10), 512, 600),
    Case((784, 100, 10), 8, 10_000),
    Case((784, 100, 10), 64, 10_000),
    Case((784, 64, 64, 10), 64, 512),
)
LOWER = tuple(
    case._replace(precision=precision)
    for precision in ("high", "medium")
    for case in (Case((784, 100, 10), 64, 600), Case((784, 64, 64, 10), 64, 512), Case((64, 32, 10), 64, 1437))
)
"""Cases of the lower precisions, which not every machine has."""
AGREE = {"highest": (1e-5, 5e-2), "high": (1e-4, 5e-2), "medium": (5e-2, 2e-1)}
"""How far most numbers, and whole particles, of two providers may be apart."""


def with_fastsmc(case, theta, x, y):
    post = fs.Posterior(fs.MLP(case.widths), likelihood=case.likelihood, precision=case.precision)
    return lambda: post.log_likelihood_and_grad(theta, x, y)


def with_jax(case, theta, x, y, products="float32"):
    """Operands of products, and what these are rounded to, are of the given type, as they are in torch's autocast."""
    import jax
    import jax.numpy as jnp

    def log_likelihood(particle, x, y):
        parts = jnp.split(particle, case.bounds[:-1])
        h = x
        for k, (i, o) in enumerate(case.layers):
            operands = (jax.nn.relu(h) if k else h), parts[2 * k].reshape(o, i).T
            h = jnp.matmul(*(a.astype(products) for a in operands)).astype(jnp.float32) + parts[2 * k + 1]
        if case.likelihood == "gaussian":
            return jnp.sum(-0.5 * (y - h[:, 0]) ** 2 - 0.5 * jnp.log(2 * jnp.pi))
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None], axis=1))

    call = jax.jit(jax.vmap(jax.value_and_grad(log_likelihood), in_axes=(0, None, None)))
    theta, x, y = map(jnp.asarray, (theta, x, y))
    return lambda: jax.block_until_ready(call(theta, x, y))


def with_torch_func(case, theta, x, y, device="cpu"):
    import torch
    from torch.nn import functional

    def log_likelihood(particle, x, y):
        parts = torch.tensor_split(particle, case.bounds[:-1].tolist())
        h = x
        for k, (i, o) in enumerate(case.layers):
            h = functional.linear(torch.relu(h) if k else h, parts[2 * k].view(o, i), parts[2 * k + 1])
        return _torch_log_likelihood(h.float(), y, case)

    call = torch.func.vmap(torch.func.grad_and_value(log_likelihood), in_dims=(0, None, None))
    theta, x, y = (torch.as_tensor(array, device=device) for array in (theta, x, y))

    def run():
        grad, value = call(theta, x, y)
        return value, grad

    return run


def with_torch_by_hand(case, theta, x, y, device="cpu"):
    """One tensor per layer for all particles; the first layer, whose input is shared, as one product."""
    import torch

    P = len(theta)
    x, y = (torch.as_tensor(array, device=device) for array in (x, y))
    parts = []
    for part, size in zip(
        np.split(theta, case.bounds[:-1], axis=1),
        [size for i, o in case.layers for size in ((o, i), (o,))],
        strict=True,
    ):
        parts.append(torch.as_tensor(part.copy(), device=device).view(P, *size).requires_grad_())

    def call():
        i, o = case.layers[0]
        h = (x @ parts[0].view(P * o, i).T).view(-1, P, o).transpose(0, 1) + parts[1][:, None]
        for weight, bias in zip(parts[2::2], parts[3::2], strict=True):
            h = torch.baddbmm(bias[:, None], torch.relu(h), weight.transpose(1, 2))
        value = _torch_log_likelihood(h.float(), y.expand(P, -1), case)
        return value.detach(), torch.autograd.grad(value.sum(), parts)

    return call


def with_torch_mixed(case, theta, x, y):
    return mixed(with_torch_by_hand(case, theta, x, y))


def mixed(call, device="cpu"):
    """A call of torch with matrix products of bfloat16 numbers."""
    import torch

    def run():
        with torch.autocast(device, torch.bfloat16):
            return call()

    return run


def _torch_log_likelihood(h, y, case):
    import torch

    if case.likelihood == "gaussian":
        return torch.sum(-0.5 * (y - h[..., 0]) ** 2 - 0.5 * np.log(2 * np.pi), dim=-1)
    return torch.log_softmax(h, -1).gather(-1, y[..., None]).sum(dim=(-2, -1))


PROVIDERS = {
    OURS: with_fastsmc,
    "jax.vmap (jit)": with_jax,
    "torch.func.vmap": with_torch_func,
    "torch baddbmm + autograd": with_torch_by_hand,
}
MIXED_PROVIDERS = PROVIDERS | {"torch baddbmm + autograd, bfloat16": with_torch_mixed}


def agree(ours, other, precision="highest") -> None:
    """Agree to rounding in most numbers, and roughly in all.

    A ReLU whose input is zero to rounding may be on for one provider and off for another, as may the place of a
    maximum: among millions of units some are, and the gradients of their particles then differ by up to a percent, but
    hardly in the weights of other units.
    """
    value, grad = other
    if isinstance(grad, tuple):
        grad = np.concatenate([np.asarray(part).reshape(len(part), -1) for part in grad], axis=1)
    for mine, theirs in zip(ours, (value, grad), strict=True):
        mine, theirs = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (mine, theirs))
        norms, root = np.linalg.norm(mine, axis=1), np.sqrt(mine.shape[1])
        worst = np.max(np.linalg.norm(theirs - mine, axis=1) / norms)
        typical = np.median(root * np.abs(theirs - mine) / norms[:, None])
        if not (typical < AGREE[precision][0] and worst < AGREE[precision][1]):
            raise AssertionError(f"numbers of the providers differ by {typical:.1e}, particles by {worst:.1e} at worst")


def problem(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particles and a batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.batch, case.widths[0])).astype(np.float32)
    categorical = case.likelihood == "categorical"
    y = rng.integers(0, case.widths[-1], case.batch) if categorical else rng.normal(size=case.batch)
    net = fs.MLP(case.widths)
    scales = fs.Normal("fan_in").scales(net)
    theta = (rng.normal(size=(case.particles, net.num_params)) * scales).astype(np.float32)
    return theta, x, y.astype(np.int64 if categorical else np.float32)


def run(effort: Effort, quick: bool) -> None:
    """Measure all shapes."""
    bench = Bench("mlp_gradient", effort, not quick)
    for case in CASES[: 3 if quick else None]:
        bench.case(str(case), PROVIDERS, (case, *problem(case)), agree, flops=case.flops)
    for case in [case for case in LOWER if case.in_use and not quick]:
        agreement, how = partial(agree, precision=case.precision), {"flops": case.flops, "precision": case.precision}
        bench.case(str(case), MIXED_PROVIDERS, (case, *problem(case)), agreement, **how)
