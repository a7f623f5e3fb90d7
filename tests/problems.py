"""A network with particles and a batch, computed by every engine and by torch; and what counts as exact."""

from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

import fastsmc as fs
from fastsmc import ops
from fastsmc.likelihoods import LIKELIHOODS

EPS = np.finfo(np.float32).eps
MANY = 8  # particles, enough for a mean error

LOSSES = {
    "categorical": lambda z, y, noise, how: -functional.cross_entropy(z, y, reduction=how),
    "bernoulli": lambda z, y, noise, how: -functional.binary_cross_entropy_with_logits(z, y, reduction=how),
    "gaussian": lambda z, y, noise, how: torch.distributions.Normal(z, noise).log_prob(y),
    "poisson": lambda z, y, noise, how: torch.distributions.Poisson(z.exp()).log_prob(y),
}


def fewer_interpreted(names, *values, kept):
    """All combinations on a device; the interpreter leaves out as ``large`` those not ``kept``, to save time."""
    rows = product(*values)
    marked = [pytest.param(*row, marks=() if kept(*row) else pytest.mark.large) for row in rows]
    return pytest.mark.parametrize(names, marked)


@contextmanager
def threads(count):
    """Torch and the engine have one OpenMP runtime, and so one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_change_no_bit(results):
    """Of the arrays that the function returns."""

    def bits(count):
        with threads(count):
            return [np.ascontiguousarray(part).tobytes() for part in results()]

    one = bits(1)
    assert one
    assert all(one)
    assert all(bits(count) == one for count in (2, 3, 16))


class Problem:
    """Every number is one of float32."""

    def __init__(self, net, particles, samples, kind, seed, noise=0.3):
        rng = np.random.default_rng(seed)
        self.net, self.weights = net, None
        self.likelihood = fs.Gaussian(noise) if kind == "gaussian" else LIKELIHOODS[kind]()
        scales = fs.Normal("fan_in").scales(self.net)
        self.theta = (scales * rng.standard_normal((particles, len(scales)))).astype(np.float32)
        self.x = rng.standard_normal((samples, net.num_inputs), np.float32)
        self.y = {
            "categorical": lambda: rng.integers(0, net.num_outputs, samples),
            "bernoulli": lambda: rng.random((samples, net.num_outputs), np.float32),
            "gaussian": lambda: rng.standard_normal((samples, net.num_outputs), np.float32),
            "poisson": lambda: rng.poisson(2.0, (samples, net.num_outputs)).astype(np.float32),
        }[kind]()

    def weighted(self):
        """The same with a weight for every sample, of which some are zero."""
        self.weights = np.random.default_rng(7).uniform(0, 2, len(self.x)).astype(np.float32)
        self.weights[1::5] = 0
        return self

    def value_and_grad(self, backend, dtype=np.float32, precision="highest"):
        theta = self.theta.astype(dtype)
        how = {"weights": self.weights, "precision": precision, "backend": backend}
        return ops.log_likelihood_and_grad(self.net, self.likelihood, theta, self.x, self.y, **how)

    def value(self, backend):
        how = {"weights": self.weights, "backend": backend}
        return ops.log_likelihood(self.net, self.likelihood, self.theta, self.x, self.y, **how)

    def outputs(self, backend, dtype=np.float32, precision="highest"):
        how = {"precision": precision, "backend": backend}
        return ops.network_outputs(self.net, self.theta.astype(dtype), self.x, **how)

    def everything(self, backend, dtype=np.float32, precision="highest"):
        """Value, gradient and outputs."""
        return (*self.value_and_grad(backend, dtype, precision), self.outputs(backend, dtype, precision))

    def truth(self):
        return self.everything("reference", np.float64)

    def by_torch(self, dtype=torch.float32, mixed=False):
        """The same by torch's own layers, losses and autograd; or in its mixed precision, autocast to bfloat16."""
        module, results = self.net.to_torch().to(dtype), []
        x, y = torch.from_numpy(self.x).to(dtype), torch.from_numpy(self.y)
        y = y if y.dtype == torch.int64 else y.to(dtype)
        weights = None if self.weights is None else torch.from_numpy(self.weights).to(dtype)
        for row in torch.from_numpy(self.theta).to(dtype):
            row.requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                z = torch.func.functional_call(module, self.net.unpack(row), (x,))
            z = z.to(dtype).flatten(1)
            value = LOSSES[self.likelihood.name](z, y, self.likelihood.noise, "sum" if weights is None else "none")
            value = (value if weights is None else weights * value.reshape(len(weights), -1).sum(dim=1)).sum()
            (grad,) = torch.autograd.grad(value, row)
            results.append((value.item(), grad.numpy(), z.detach().numpy()))
        return tuple(np.array(part) for part in zip(*results, strict=True))


def several(net, samples):
    """Particles for a mean error, unless so many units would meet a ReLU that is zero to rounding."""
    units = samples * sum(int(np.prod((layer.out_channels, *layer.unpooled))) for layer in net.layers)
    return max(1, min(MANY, 1_000_000 // units))


def as_exact_as(plain, ours, truth):
    """The error of a particle, by 2-norm and largest element: at most twice plain float32's, plus one rounding."""
    for order in (2, np.inf):
        error, allowed = errors_of(plain, ours, truth, order)
        assert error <= allowed, f"order {order}: {error:.1e}, where twice torch's and a rounding are {allowed:.1e}"


def quadratic_mean(errors):
    """Over particles."""
    return np.sqrt(np.mean(errors**2))


def errors_of(plain, ours, truth, order, mean=quadratic_mean):
    """Our relative error in a norm, and the one that is allowed.

    In the quadratic mean over particles: of a few numbers the largest error is a matter of luck, torch's as well as
    ours, and torch's differs from one processor to the next.
    """
    rows = [np.asarray(a, np.float64).reshape(1 if a.ndim == 1 else len(a), -1) for a in (ours, plain, truth)]
    size = np.maximum(np.linalg.norm(rows[2], order, axis=1), np.finfo(np.float32).tiny)
    errors = [np.linalg.norm(a - rows[2], order, axis=1) / size for a in rows[:2]]
    error, torchs = map(mean, errors)
    return error, 2 * torchs + EPS


def gradient_equals_central_differences(problem):
    """Of the reference, for the first particle."""
    theta, h = problem.theta[:1].astype(np.float64), 1e-5
    value, grad = problem.value_and_grad("reference", np.float64)

    def slopes(step):
        shifts = step * np.concatenate([np.eye(theta.size), -np.eye(theta.size)])
        how = {"weights": problem.weights, "backend": "reference"}
        values = ops.log_likelihood(problem.net, problem.likelihood, theta + shifts, problem.x, problem.y, **how)
        return (values[: theta.size] - values[theta.size :]) / (2 * step)

    # the error is a third of the change from 2h to h, and the rounding of the values
    truncation = np.abs(slopes(2 * h) - slopes(h))
    rounding = len(problem.x) * 2.0**-52 * np.abs(value[0]) / h
    assert np.all(np.abs(slopes(h) - grad[0]) <= truncation + rounding)


def every_element_is_written(problem, engine, name):
    """Into arrays full of NaN."""
    net, likelihood = problem.net, problem.likelihood
    value, grad = np.full(len(problem.theta), np.nan), np.full_like(problem.theta, np.nan)
    targets = likelihood.targets(problem.y, net.num_outputs)
    engine.log_likelihood(
        net.layer_table, likelihood.code, likelihood.noise, 0,
        problem.theta, problem.x, targets, None, value, grad,
    )  # fmt: skip
    outputs = np.full((*value.shape, len(problem.x), net.num_outputs), np.nan, np.float32)
    engine.network_outputs(net.layer_table, 0, problem.theta, problem.x, outputs)
    for found, expected in zip((value, grad, outputs), problem.everything(name), strict=True):
        assert np.isfinite(found).all()
        assert np.array_equal(found, expected)


BLANKS = {"strokes": 0.3, "one-hot": 0.9, "some samples": 0.9, "nothing": 1.0}  # share of zeros beside those in runs


def with_blanks(x, blank):
    """Of x, what images and one-hot columns leave: zeros side by side, among the inputs and among the samples."""
    rng, full, x = np.random.default_rng(5), x, x.copy()
    samples, inputs = x.shape
    for at in range(0, samples, 13):
        first = rng.integers(inputs)
        x[at : at + 13, first : first + 1 + inputs // 2] = 0
    x[rng.random(x.shape) < BLANKS[blank]] = 0
    if blank == "some samples":
        x[samples // 3 : 2 * samples // 3] = full[samples // 3 : 2 * samples // 3]
    return x


def whole_numbers_are_exact(net, samples, backend, seed, blank=None):
    """Sums of small whole numbers have no rounding: no bit may differ."""
    rng = np.random.default_rng(seed)
    theta, x, y = (
        rng.integers(-1, 2, shape).astype(np.float32)
        for shape in ((2, net.num_params), (samples, net.num_inputs), (samples, net.num_outputs))
    )
    x = x if blank is None else with_blanks(x, blank)
    weights = rng.integers(0, 4, samples).astype(np.float32)
    plain = ops.log_likelihood_and_grad(net, fs.Gaussian(), theta, x, y, backend=backend)
    weighted = ops.log_likelihood_and_grad(net, fs.Gaussian(), theta, x, y, weights=weights, backend=backend)
    z = ops.network_outputs(net, theta, x, backend=backend)
    exact = net.to_torch().double()
    for p, row in enumerate(torch.from_numpy(theta).double()):
        row.requires_grad_()
        truth = torch.func.functional_call(exact, net.unpack(row), (torch.from_numpy(x).double(),))
        assert np.array_equal(z[p], truth.detach().numpy())
        squares = torch.square(torch.from_numpy(y) - truth)
        for (value, grad), factors in ((plain, np.ones_like(weights)), (weighted, weights)):
            total = -0.5 * (torch.from_numpy(factors)[:, None] * squares).sum()
            assert np.array_equal(grad[p], torch.autograd.grad(total, row, retain_graph=True)[0].numpy())
            constant = 0.5 * factors.sum() * net.num_outputs * np.log(2 * np.pi)
            assert value[p] == pytest.approx(total.item() - constant, rel=1e-13)


def weighted_samples_are_as_exact_as_torch(problem, engine):
    value, grad = problem.weighted().value_and_grad(engine)
    for ours, truth, plain in zip((value, grad), problem.truth()[:2], problem.by_torch()[:2], strict=True):
        as_exact_as(plain, ours, truth)
    assert np.array_equal(problem.value(engine), value)


def weights_of_one_change_no_bit(problem, backend, **how):
    plain = problem.value_and_grad(backend, **how)
    problem.weights = np.ones(len(problem.x), np.float32)
    assert all(map(np.array_equal, plain, problem.value_and_grad(backend, **how)))


def each_particle_alone_gives_the_same_bits(problem, backend):
    together, theta = problem.everything(backend), problem.theta
    assert all(map(np.array_equal, together, problem.everything(backend)))
    for p in range(len(theta)):
        problem.theta = theta[p : p + 1]
        assert all(np.array_equal(a[0], t[p]) for a, t in zip(problem.everything(backend), together, strict=True))
    problem.theta = theta
