"""The CUDA engine's densities and trajectories: on a GPU, or its host twin."""

from functools import partial
from itertools import pairwise

import numpy as np
import problems
import pytest
import test_precision
import torch
from problems import as_exact_as
from test_trajectory import by_steps, in_one

import fastsmc as fs
from fastsmc import backends, ops
from fastsmc.likelihoods import LIKELIHOODS
from fastsmc.networks import ACTIVATIONS

if not (available := backends.BACKENDS["cuda"].available())[0]:
    pytest.skip(f"cuda: {available[1]}", allow_module_level=True)

ODD = "odd widths"
SLICE = 4096

# widths, particles, samples: tiles are of 16, 32 or 64 samples, strips of a product 16 by 32, weights padded to 16
SHAPES = {
    ODD: ((13, 7, 5, 3), 3, 29),
    "no hidden layer": ((6, 4), 3, 50),
    "batch of one": ((5, 4, 3), 3, 1),
    "one of everything": ((1, 1, 1), 1, 1),
    "one less than whole": ((15, 31, 15), 2, 63),
    "whole": ((16, 32, 16), 2, 64),
    "one more than whole": ((17, 33, 17), 2, 65),
    "the digits' network": ((64, 32, 10), 2, 130),
    "more strips than warps": ((5, 100, 90), 2, 40),
    "as many layers as there may be": ((4,) * 9, 2, 20),
    "wide rows": ((784, 8, 3), 2, 40),
}

every_shape = pytest.mark.parametrize("shape", SHAPES)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)
every_precision = pytest.mark.parametrize("precision", ops.PRECISIONS)


class Problem(test_precision.Problem):
    def __init__(self, shape=ODD, activation="tanh", kind="categorical"):
        super().__init__(SHAPES.get(shape, shape), activation, kind)


def is_exact(problem, precision):
    found, truth = problem.by("cuda", precision), problem.truth()
    if precision == "highest":
        for ours, exact, plain in zip(found, truth, problem.by_torch("highest"), strict=True):
            as_exact_as(plain, ours, exact)
    else:
        test_precision.are_bounded(precision, found, truth, problem)


@every_shape
def test_a_block_has_room_for_every_shape(shape, unmirrored):
    """Where it had none, the tests below would be skipped."""
    widths, _, samples = SHAPES[shape]
    engine = backends.choose("cuda", backends.BACKENDS["cuda"].device).ops
    assert all(engine.serves(fs.MLP(widths).layer_table, precision, samples) for precision in range(3))


@every_shape
@every_precision
def test_every_shape_is_as_exact_as_torch(shape, precision):
    is_exact(Problem(shape, "gelu").weighted(), precision)


@every_likelihood
@every_precision
def test_every_likelihood_is_as_exact_as_torch(kind, precision):
    is_exact(Problem(ODD, kind=kind), precision)


@every_activation
@every_precision
def test_every_activation_is_as_exact_as_torch(activation, precision):
    is_exact(Problem(ODD, activation), precision)


@pytest.mark.parametrize("samples", [SLICE, SLICE + 1, 2 * SLICE + 70])
def test_slices_are_summed(samples):
    is_exact(Problem(((3, 4, 2), 2, samples)).weighted(), "highest")


def test_more_slices_than_are_summed_at_once_are_summed_in_order():
    problem, ends = Problem(((2, 2), 1, 130 * SLICE + 70)), [0, 128 * SLICE, 129 * SLICE, 130 * SLICE, None]
    x, y, whole = problem.x, problem.y, problem.value_and_grad("cuda")
    sums = np.zeros(1), np.zeros_like(whole[1])
    for begin, end in pairwise(ends):
        problem.x, problem.y = x[begin:end], y[begin:end]
        sums = tuple(map(np.add, sums, problem.value_and_grad("cuda")))
    assert all(map(np.array_equal, whole, sums))


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 32, 33, 64, 65, 129])
def test_whole_numbers_are_exact(samples):
    for widths in [(3, 2), (17, 33, 16), (4, 15, 3)]:
        problems.whole_numbers_are_exact(fs.MLP(widths, "relu"), samples, "cuda", seed=samples)


@every_likelihood
def test_weights_of_one_change_no_bit(kind):
    problems.weights_of_one_change_no_bit(Problem(ODD, "silu", kind), "cuda")


@every_shape
def test_each_particle_alone_gives_the_same_bits(shape):
    problems.each_particle_alone_gives_the_same_bits(Problem(shape, "relu"), "cuda")


@every_shape
def test_the_value_without_the_gradient_is_the_same(shape):
    problem = Problem(shape, "silu").weighted()
    assert np.array_equal(problem.value("cuda"), problem.value_and_grad("cuda")[0])


def test_precisions_are_in_use_and_not_another():
    problem = Problem("whole")
    found = [problem.by("cuda", precision) for precision in ops.PRECISIONS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not any(map(np.array_equal, found[first], found[second]))


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_particle_that_is_not_a_number_harms_no_other(kind):
    problem = Problem(ODD, "relu", kind)
    clean = problem.by("cuda")
    for poison in (np.nan, np.inf):
        problem.theta[1] = poison
        value, grad, outputs = problem.by("cuda")
        assert not np.isfinite(value[1])
        for dirty, pure in zip((value, grad, outputs), clean, strict=True):
            assert np.array_equal(dirty[::2], pure[::2])


@pytest.mark.parametrize("samples", [29, SLICE + 40])
@pytest.mark.parametrize("label", [-1, 3, 2**62, -(2**63)])
def test_the_first_bad_label_is_named(samples, label):
    problem = Problem(((13, 7, 3), 3, samples))
    problem.y[samples - 9 :: 3] = label
    with pytest.raises(ValueError, match=rf"y\[{samples - 9}\] is {label}; labels must lie in \[0, 3\)"):
        problem.value("cuda")


@pytest.mark.parametrize("precision", ops.PRECISIONS)
@pytest.mark.parametrize(
    ("samples", "refresh"),
    [
        *[(70, share) for share in (None, 0.0, 0.6)],
        *[pytest.param(SLICE + 70, share, marks=pytest.mark.large) for share in (None, 0.0)],
        (SLICE + 70, 0.6),
    ],
)
def test_a_trajectory_is_its_steps(precision, samples, refresh):
    """One launch, or one for each part of a step; the energies of 1,500 weights are sums of two runs."""
    rng = np.random.default_rng(1)
    post = fs.Posterior(fs.MLP((40, 32, 5), "tanh"), fs.Normal("fan_in"), precision=precision, backend="cuda")
    theta = post.sample_prior(2)
    v = rng.standard_normal(theta.shape, np.float32)
    x, y = rng.standard_normal((samples, 40), np.float32), rng.integers(0, 5, samples)
    plan = x, y, 0.01, 3, 1.7, refresh, None, rng.uniform(0.3, 1.5, theta.shape[1]).astype(np.float32)
    apart, together = (run(post, theta.copy(), v.copy(), *plan) for run in (by_steps, in_one))
    for expected, found in zip(apart, together, strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize(
    "net",
    [fs.MLP((784, 100, 10)), fs.MLP((4,) * 10), fs.MLP((5000, 1)), fs.LeNet5()],
    ids=["too large", "too many layers", "too wide", "convolutions"],
)
def test_networks_that_do_not_fit_are_somebody_elses(net, unmirrored):
    problem = problems.Problem(net, 1, 2, "categorical", 0)
    device = backends.BACKENDS["cuda"].device
    engine = backends.choose("cuda", device).ops
    assert engine.serves(fs.MLP((13, 7, 3)).layer_table, 0, 2)
    assert not engine.serves(net.layer_table, 0, 2)
    theta, x, y = (torch.as_tensor(a, device=device) for a in (problem.theta, problem.x, problem.y))
    evaluate = partial(ops.log_likelihood, net, problem.likelihood, theta, x, y)
    if device == "cuda":
        assert torch.equal(evaluate(backend="cuda"), evaluate(backend="triton"))
    else:
        with pytest.raises(NotImplementedError, match=f"has no room for {len(net.layers)} layers of"):
            evaluate(backend="cuda")
