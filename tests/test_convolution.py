from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
import problems
import pytest
import torch
from problems import as_exact_as, several, threads_change_no_bit
from test_trajectory import by_steps, in_one, weights_of

import fastsmc as fs
from fastsmc import backends, ops
from fastsmc.networks import ACTIVATIONS, Layer, LayeredNetwork, convolution, dense


@dataclass(frozen=True)
class Images(LayeredNetwork):
    """Any layers, so that shapes need not be LeNet's."""

    layers: tuple[Layer, ...]


def stack(image, convolutions, classes, activation):
    """Convolutions (channels, kernel, padding, pool) one after the other, then one dense layer."""
    layers = []
    for channels, kernel, padding, pool in convolutions:
        layers.append(convolution(image, channels, kernel, activation, padding=padding, pool=pool))
        image = (channels, layers[-1].out_height, layers[-1].out_width)
    return Images((*layers, dense(layers[-1].num_outputs, classes)))


# image, convolutions, classes, particles, samples. The engine's register tile is 6 channels of 8, 16 or 64 samples
# forward, up to 4 or 6 channels by 3 or 4 terms backward; a stretch is 128 samples, or a part of that where their
# activations take more than 1 MiB, a group up to 512. More than a million units would meet a ReLU that is zero to
# rounding.
SHAPES = {
    "odd everything": ((3, 7, 9), [(5, 3, 1, 2), (7, 2, 0, 1)], 3, 5, 29),
    "one sample": ((2, 6, 5), [(3, 3, 1, 2)], 4, 3, 1),
    "one particle, over a panel": ((1, 5, 6), [(4, 3, 0, 1)], 2, 1, 131),
    "one of everything": ((1, 1, 1), [(1, 1, 0, 1)], 1, 1, 1),
    "pooled by three, which drops rows and columns": ((2, 11, 13), [(4, 3, 1, 3)], 2, 2, 18),
    "a border wider than the filter's reach": ((1, 4, 4), [(3, 3, 4, 2), (2, 2, 2, 1)], 2, 9, 17),
    "channels over the register tile": ((7, 6, 6), [(20, 3, 1, 2), (13, 3, 1, 1)], 3, 2, 20),
    "one image and one filter alike": ((2, 5, 5), [(8, 5, 0, 1)], 3, 3, 33),
    "terms over the depth of a block": ((30, 6, 5), [(6, 3, 1, 1)], 2, 7, 9),
    "rows over the width of a piece": ((2, 3, 61), [(7, 3, 1, 1)], 2, 1, 70),
    "groups of tiles": ((1, 10, 10), [(3, 3, 1, 1)], 2, 1, 700),
    "tiles cut to the cache": ((1, 34, 34), [(2, 3, 1, 1)], 2, 1, 130),
}


class Problem(problems.Problem):
    def __init__(self, shape, activation="tanh", kind="categorical", many=False):
        image, convolutions, classes, particles, samples = SHAPES[shape]
        net = stack(image, convolutions, classes, activation)
        particles = max(particles, several(net, samples)) if many else particles
        super().__init__(net, particles, samples, kind, seed=net.num_params + samples)


@cache
def truth_of(*problem):
    return Problem(*problem).truth()


every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_shape
@every_activation
def test_engines_are_as_exact_as_torch(engine, shape, activation):
    problem = Problem(shape, activation, "categorical", True)
    ours, truth = problem.everything(engine), truth_of(shape, activation, "categorical", True)
    for mine, exact, plain in zip(ours, truth, problem.by_torch(), strict=True):
        assert mine.shape == exact.shape
        as_exact_as(plain, mine, exact)
    assert np.array_equal(problem.value(engine), ours[0])


@every_shape
def test_weighted_samples_are_as_exact_as_torch(engine, shape):
    problems.weighted_samples_are_as_exact_as_torch(Problem(shape, "gelu", "categorical", True), engine)


@every_shape
def test_weights_of_one_change_no_bit(backend, shape):
    problems.weights_of_one_change_no_bit(Problem(shape, "silu", "gaussian"), backend)


@every_shape
@every_activation
def test_the_reference_equals_autograd_in_float64(shape, activation):
    double = Problem(shape, activation).by_torch(torch.float64)
    for ours, truth in zip(truth_of(shape, activation, "categorical"), double, strict=True):
        assert np.linalg.norm(ours - truth) <= 500_000 * 2.0**-53 * np.linalg.norm(truth)  # terms of the longest sum


@pytest.mark.parametrize(
    ("shape", "activation"),
    [("odd everything", "silu"), ("pooled by three, which drops rows and columns", "tanh")],
)
def test_the_reference_gradient_equals_central_differences(shape, activation):
    problems.gradient_equals_central_differences(Problem(shape, activation, "gaussian"))


@every_shape
def test_every_element_is_written(backend, shape):
    problems.every_element_is_written(Problem(shape, "silu", "gaussian"), backends.choose(backend).ops, backend)


@pytest.mark.parametrize("samples", [1, 7, 17, 33, 130])
def test_samples_that_a_vector_misses_overflow_nowhere(engine, samples):
    """Filters make 2e38 of nothing, and nothing of what they see; a layer behind them multiplies by 8."""
    image = convolution((1, 3, 4), 2, 1, "identity")
    net = Images((image, convolution((2, 3, 4), 3, 2, "relu", padding=1, pool=2), dense(12, 2)))
    problem = problems.Problem(net, 2, samples, "categorical", seed=samples)
    problem.x[:] = 1
    weight, bias, second, *_ = net.unpack(problem.theta).values()
    weight[:], bias[:] = -(2.0**127), 2.0**127
    second[:] = 8
    for ours, right in zip(problem.everything(engine), problem.everything("reference", np.float32), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 4, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 127, 129, 300])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_whole_numbers_are_exact_in_every_lane(backend, samples, activation):
    """However the batch fills the panels; ties of the maxima are many."""
    for image, convolutions in [
        ((1, 4, 5), [(2, 2, 0, 1)]),
        ((2, 6, 5), [(3, 3, 1, 2)]),
        ((1, 9, 9), [(7, 3, 2, 3), (5, 2, 1, 1)]),
    ]:
        problems.whole_numbers_are_exact(stack(image, convolutions, 2, activation), samples, backend, seed=samples)


@every_shape
def test_each_particle_alone_gives_the_same_bits(backend, shape):
    problem = Problem(shape, "gelu", "bernoulli")
    problems.each_particle_alone_gives_the_same_bits(problem, backend)
    problems.each_particle_alone_gives_the_same_bits(problem.weighted(), backend)


@pytest.mark.parametrize("level", [0.0, 1.0, -2.0])
@every_activation
def test_the_first_of_equal_pixels_is_the_maximum(backend, level, activation):
    problem = Problem("odd everything", activation)
    problem.x[...] = level
    parts = problem.by_torch(), problem.everything(backend), problem.by_torch(torch.float64)
    for plain, ours, exact in zip(*parts, strict=True):
        as_exact_as(plain, ours, exact)


@every_activation
def test_a_particle_that_is_not_a_number_harms_no_other(backend, activation):
    others = [0, 1, 3, 4]
    with np.errstate(invalid="ignore", over="ignore"):
        clean = Problem("odd everything", activation).everything(backend)
        for p in Problem("odd everything").net.parameters:
            for element in (0, -1):
                problem = Problem("odd everything", activation)
                problem.net.unpack(problem.theta)[p.name].reshape(5, -1)[2, element] = np.nan
                value, grad, outputs = problem.everything(backend)
                assert np.isnan(value[2])
                assert np.isnan(grad[2]).any()
                assert np.isnan(outputs[2]).any()
                for dirty, pure in zip((value, grad, outputs), clean, strict=True):
                    assert np.array_equal(dirty[others], pure[others])


@pytest.mark.parametrize("pixel", range(4))
def test_not_a_number_is_the_largest_of_a_square(backend, pixel):
    """Whichever pixel of the square it is, as in torch."""
    net = stack((1, 2, 2), [(1, 1, 0, 2)], 1, "relu")
    theta, x = np.ones((1, net.num_params), np.float32), np.ones((3, 4), np.float32)
    x[1, pixel] = np.nan
    outputs = ops.network_outputs(net, theta, x, backend=backend)[0, :, 0]
    assert np.isnan(outputs[1])
    assert np.array_equal(outputs[[0, 2]], [3, 3])


def everything():
    rng = np.random.default_rng(3)
    for net, particles, samples in [(fs.LeNet5(), 5, 29), (fs.LeNet5(1, 3, "tanh", 13), 1, 1100)]:
        post = fs.Posterior(net, fs.Normal("fan_in"))
        theta = post.sample_prior(particles)
        x = rng.standard_normal((samples, net.num_inputs), np.float32)
        y, weights = np.ones(samples, int), rng.random(samples, np.float32)
        yield from (*post.log_likelihood_and_grad(theta, x, y), post.outputs(theta, x))
        yield from post.log_likelihood_and_grad(theta, x, y, weights=weights)


def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)


def lenet(particles, samples, **options):
    net = fs.LeNet5(**options)
    rng = np.random.default_rng(samples)
    post = fs.Posterior(net, fs.Normal("fan_in"))
    images = rng.standard_normal((samples, net.in_channels, net.image_size, net.image_size), np.float32)
    return post, post.sample_prior(particles), images, rng.integers(0, net.num_classes, samples)


@pytest.mark.parametrize("options", [{}, {"in_channels": 3, "image_size": 32}, {"num_classes": 3, "image_size": 13}])
def test_lenet_reads_images_and_their_rows(engine, options):
    post, theta, images, y = lenet(2, 9, **options)
    rows = images.reshape(len(images), -1)
    by_rows, by_images = (post.log_likelihood_and_grad(theta, x, y) for x in (rows, images))
    assert all(map(np.array_equal, by_rows, by_images))
    problem = problems.Problem(post.network, 2, 9, "categorical", seed=1)
    for ours, truth, plain in zip(problem.everything(engine), problem.truth(), problem.by_torch(), strict=True):
        as_exact_as(plain, ours, truth)


@every_activation
def test_the_last_layer_may_be_a_convolution(engine, activation):
    """With its activation and pool, in the engine and in ``to_torch``; Triton's engine, a device's, refuses it."""
    problem = problems.Problem(Images((convolution((2, 7, 6), 3, 3, activation, pool=2),)), 3, 21, "gaussian", seed=4)
    double = problem.by_torch(torch.float64)
    if engine == "triton" or (engine == "cuda" and import_module("fastsmc._cuda").device() == "cuda"):
        with pytest.raises(NotImplementedError) as refusal:
            problem.everything(engine)
        assert str(refusal.value) == "layers ends with a convolution; the triton engine needs a dense layer there"
        return
    for ours, truth, exact, plain in zip(
        problem.everything(engine), problem.truth(), double, problem.by_torch(), strict=True
    ):
        assert np.linalg.norm(truth.ravel() - exact.ravel()) <= 500_000 * 2.0**-53 * np.linalg.norm(exact)
        as_exact_as(plain, ours, truth)


@pytest.mark.parametrize("shape", [(9, 27, 28), (9, 783), (9, 2, 28, 28)])
def test_images_of_other_shapes_are_refused(backend, shape):
    post, theta, _, y = lenet(2, 9)
    with pytest.raises(ValueError, match=r"x has shape \(9, .*\); this network needs \[B, 784\]"):
        post.on(backend).log_likelihood(theta, np.zeros(shape, np.float32), y)


def test_a_trajectory_is_its_steps(engine):
    for particles, samples in ((3, 40), (1, 600)):
        post, theta, x, y = lenet(particles, samples, num_classes=3, image_size=14)
        v = np.random.default_rng(5).standard_normal(theta.shape, np.float32)
        plan = (x, y, 0.003, 3, 1.3, 0.5, weights_of(y))
        apart, together = (run(post.on(engine), theta.copy(), v.copy(), *plan) for run in (by_steps, in_one))
        assert all(map(np.array_equal, apart, together))


def test_a_run_learns_where_the_bar_is():
    """A bright bar in the upper, middle or lower third of the image."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 240)
    x = 0.3 * rng.standard_normal((240, 1, 12, 12), np.float32)
    x[np.arange(240), 0, 4 * y + 1, 2:10] += 2
    post = fs.Posterior(fs.LeNet5(num_classes=3, image_size=12), fs.Normal("fan_in"))
    smc = fs.SMC(post, 8, fs.SmoothDataAnnealing(start=40), fs.HMC(10), num_iterations=15, seed=1)
    result = smc.run(x[:160], y[:160], progress=False)
    prior = post.outputs(post.sample_prior(8), x[160:]).argmax(axis=-1)
    assert result.evaluate(x[160:], y[160:])["accuracy"] >= 0.9 > np.mean(prior == y[160:])
