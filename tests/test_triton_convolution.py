"""The Triton engine's convolutions and the networks that begin with them, in Triton's interpreter or on a GPU."""

import numpy as np
import problems
import pytest
import test_triton_leapfrog
import test_triton_mlp
import torch
from problems import as_exact_as, fewer_interpreted
from test_convolution import Images, stack
from test_triton_mlp import DEVICE, USUAL, every_activation, is_exact, on_device

import fastsmc as fs
from fastsmc.kernels.evaluation import network_outputs
from fastsmc.kernels.tiles import Tiles
from fastsmc.networks import ACTIVATIONS, convolution, dense
from fastsmc.ops import PRECISIONS

ODD = "odd everything"
NO_POOL = "no pool"
SLICED = Tiles(samples=16, units=16, depth=16, pixels=16)
CHUNKED = Tiles(samples=16, units=16, depth=16, slice=16, chunk=32, pixels=24, packed=1)
CROWDED = Tiles(samples=16, units=16, depth=16, slice=16, chunk=32, pixels=24, scratch=26_000)  # bytes

# image, convolutions (channels, kernel, padding, pool), classes, particles, samples, tiles: one for every regime. A
# tile is 64 pixels by 16 to 64 channels, summed 16 terms at a time; of a weight gradient 64 terms, 32 pixels at a time.
SHAPES = {
    ODD: ((3, 9, 11), [(5, 3, 1, 2), (7, 2, 0, 2)], 3, 3, 5, USUAL),
    NO_POOL: ((3, 4, 5), [(5, 3, 1, 1), (7, 2, 0, 1)], 3, 3, 5, USUAL),
    "one sample": ((2, 6, 5), [(3, 3, 1, 2)], 4, 3, 1, USUAL),
    "one of everything": ((1, 1, 1), [(1, 1, 0, 1)], 1, 1, 1, USUAL),
    "pooled by three, which drops rows and columns": ((2, 11, 13), [(4, 3, 1, 3)], 2, 2, 3, USUAL),
    "a border wider than the filter's reach": ((1, 4, 4), [(3, 3, 4, 2), (2, 2, 2, 1)], 2, 2, 5, USUAL),
    "channels and terms over every tile": ((9, 4, 5), [(70, 3, 1, 2), (66, 1, 0, 1)], 3, 1, 3, USUAL),
    "places over 127": ((1, 17, 16), [(2, 1, 0, 16)], 2, 2, 2, USUAL),
    "three of them": ((2, 9, 9), [(3, 2, 0, 2), (4, 3, 1, 1), (3, 2, 1, 2)], 2, 2, 3, USUAL),
    "slices, each of whole samples": ((2, 5, 6), [(3, 3, 1, 2), (4, 2, 0, 1)], 3, 3, 9, SLICED),
    "several chunks of several slices": ((1, 4, 5), [(3, 3, 1, 2)], 2, 2, 40, CHUNKED),
    "particles in groups": ((1, 4, 5), [(3, 3, 1, 2), (2, 2, 1, 1)], 2, 5, 40, CROWDED),
}

CUT_OTHERWISE = (ODD, "slices, each of whole samples", "several chunks of several slices")


class Problem(test_triton_mlp.Problem):
    def __init__(self, shape=ODD, activation="tanh", kind="categorical"):
        image, convolutions, classes, particles, samples, self.tiles = SHAPES[shape]
        net = stack(image, convolutions, classes, activation)
        problems.Problem.__init__(self, net, particles, samples, kind, seed=net.num_params + samples)


@fewer_interpreted(["shape"], SHAPES, kept=lambda shape: shape != "places over 127")
def test_every_shape_is_as_exact_as_torch(shape):
    is_exact(Problem(shape, "gelu").weighted(), "highest")


@every_activation
def test_every_activation_is_as_exact_as_torch(activation, precision):
    """A rounding to bfloat16 may decide which pixel is the largest, and no bound holds: so without a pool there."""
    is_exact(Problem(NO_POOL if precision == "medium" else ODD, activation, "gaussian"), precision)


@fewer_interpreted(["precision"], PRECISIONS, kept=lambda precision: precision == "highest")
def test_lenet_is_as_exact_as_torch(precision):
    problem = Problem()
    problems.Problem.__init__(problem, fs.LeNet5(3, 4, image_size=13), 2, 5, "categorical", seed=5)
    is_exact(problem, precision)


@fewer_interpreted(["shape"], SHAPES, kept=lambda shape: shape in CUT_OTHERWISE)
def test_the_value_without_the_gradient_is_the_same(shape):
    problem = Problem(shape, "silu").weighted()
    assert np.array_equal(problem.by_triton(with_grad=False)[0], problem.by_triton()[0])


@fewer_interpreted(["shape"], SHAPES, kept=lambda shape: shape in CUT_OTHERWISE)
def test_each_particle_alone_gives_the_same_bits(shape):
    test_triton_mlp.each_particle_alone_gives_the_same_bits(Problem(shape, "relu"))


@fewer_interpreted(["activation"], ACTIVATIONS, kept=lambda activation: activation in ("identity", "gelu"))
@pytest.mark.parametrize("pool", [2, 3])
def test_the_first_of_equal_pixels_is_the_maximum(activation, pool):
    """Filters of zeros make all pixels equal, but not the patches that the gradient sees."""
    problem = Problem()
    net = stack((2, 7, 8), [(3, 2, 0, pool), (2, 1, 0, 1)], 3, activation)
    problems.Problem.__init__(problem, net, 2, 3, "categorical", seed=pool)
    problem.net.unpack(problem.theta)[net.parameters[0].name][...] = 0
    for ours, truth, plain in zip(problem.by_triton()[:3], problem.truth(), problem.by_torch(), strict=True):
        as_exact_as(plain, ours, truth)


@pytest.mark.parametrize("pixel", range(4))
@fewer_interpreted(["activation"], ACTIVATIONS, kept=lambda activation: activation == "relu")
def test_not_a_number_is_the_largest_of_a_square(pixel, activation):
    net = Images((convolution((1, 2, 2), 1, 1, activation, pool=2), dense(1, 1)))
    theta, x = torch.ones((1, net.num_params), device=DEVICE), torch.ones((3, 4), device=DEVICE)
    x[1, pixel] = torch.nan
    outputs = torch.full((1, 3, 1), -1.0, device=DEVICE)
    network_outputs(net.layer_table, 0, theta, x, outputs)
    assert outputs[0, 1].isnan()
    assert outputs[0, [0, 2]].isfinite().all()


@pytest.mark.large
def test_a_particle_that_is_not_a_number_harms_no_other():
    clean = Problem().by_triton()
    for p in Problem().net.parameters:
        problem = Problem()
        problem.net.unpack(problem.theta)[p.name].reshape(3, -1)[1, -1] = np.nan
        for dirty, pure in zip(problem.by_triton()[:3], clean[:3], strict=True):
            assert np.isnan(dirty[1]).any()
            assert np.array_equal(dirty[[0, 2]], pure[[0, 2]])


class Trajectory(test_triton_leapfrog.Problem):
    def __init__(self, shape):
        problem = Problem(shape).weighted()
        self.post = fs.Posterior(problem.net, prior=fs.Normal("fan_in"), likelihood="categorical")
        self.x, self.y, self.weights, self.tiles = problem.x, problem.y, problem.weights, problem.tiles
        rng = np.random.default_rng(1)
        self.scale = rng.uniform(0.3, 1.5, problem.theta.shape[1]).astype(np.float32)
        self.state = problem.theta, rng.standard_normal(problem.theta.shape, np.float32)


@fewer_interpreted(
    ["shape", "precision"],
    CUT_OTHERWISE,
    [0, 1, 2],
    kept=lambda shape, precision: (shape, precision) == ("several chunks of several slices", 0),
)
def test_a_trajectory_is_its_steps(shape, precision):
    plan = 0.01, 3, 1.7, 0.6
    problem = Trajectory(shape)
    for found, expected in zip(problem.in_one(precision, *plan), problem.by_steps(precision, *plan), strict=True):
        assert found.isfinite().all()
        assert found.equal(expected)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            [convolution((1, 4, 4), 2, 3, "relu")],
            "ends with a convolution; the triton engine needs a dense layer there",
        ),
        ([dense(16, 3), dense(3, 2, "relu")], "ends with activation 1; the triton engine needs 0, the identity, there"),
        ([dense(9, 16), convolution((1, 4, 4), 2, 3, "relu"), dense(8, 1)], "a convolution behind a dense layer"),
    ],
)
def test_other_orders_of_layers_are_refused(layers, sentence):
    net = Images(tuple(layers))
    theta, x = (on_device(np.zeros((2, size), np.float32)) for size in (net.num_params, net.num_inputs))
    with pytest.raises(NotImplementedError, match=sentence):
        network_outputs(net.layer_table, 0, theta, x, torch.zeros((2, 2, net.num_outputs), device=DEVICE))
