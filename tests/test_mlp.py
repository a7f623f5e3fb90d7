from functools import cache

import numpy as np
import problems
import pytest
import torch
from problems import EPS, as_exact_as, several, threads_change_no_bit

import fastsmc as fs
from fastsmc import backends, ops
from fastsmc.likelihoods import LIKELIHOODS
from fastsmc.networks import ACTIVATIONS, Layers, dense

NAN, INF = np.nan, np.inf
ODD = "odd widths, P and B multiples of nothing"

# widths, particles, samples. The engine's register tile is 6 rows of 8, 16 or 64 samples, its stretch 128 samples, its
# chunk about 2^20 / inputs samples in whole tiles of 64, up to 4096, summed by up to 512.
SHAPES = {
    ODD: ((13, 7, 5, 3), 5, 29),
    "no hidden layer": ((6, 4), 3, 50),
    "one particle": ((5, 4, 2), 1, 33),
    "batch of one": ((5, 4, 3), 7, 1),
    "one output": ((7, 5, 1), 3, 20),
    "one of everything": ((1, 1, 1), 1, 1),
    "widths over the register tile, with remainders": ((35, 40, 21, 3), 3, 67),
    "whole register tiles": ((32, 24, 12), 2, 64),
    "batch over the sample tile": ((20, 9, 2), 3, 300),
    "the main job's network": ((784, 100, 10), 2, 20),
    "the deepest network": ((4,) * 64, 12, 9),
    "widths for one-hot features": ((4, 6, 3), 6, 40),
    "chunks of one tile": ((8200, 2, 2), 2, 300),
    "chunks of the largest size": ((2, 3, 2), 2, 2 * 4096 + 5),
}


class Problem(problems.Problem):
    def __init__(self, shape=ODD, activation="tanh", kind="categorical", many=False):
        widths, particles, samples = SHAPES[shape]
        net = fs.MLP(widths, activation)
        particles = max(particles, several(net, samples)) if many else particles
        super().__init__(net, particles, samples, kind, seed=sum(widths) + samples)


@cache
def truth_of(*problem):
    return Problem(*problem).truth()


every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)
every_shape = pytest.mark.parametrize("shape", SHAPES)
# every shape with every activation, and with every likelihood, which the last layer alone knows of
KINDS = list(LIKELIHOODS)
every_combination = pytest.mark.parametrize(
    ("shape", "activation", "kind"),
    [(s, a, KINDS[(i + j) % len(KINDS)]) for i, s in enumerate(SHAPES) for j, a in enumerate(ACTIVATIONS)],
)


@every_combination
def test_engines_are_as_exact_as_torch(engine, shape, activation, kind):
    problem = Problem(shape, activation, kind, True)
    (value, grad), outputs = problem.value_and_grad(engine), problem.outputs(engine)
    assert value.dtype == np.float64
    assert grad.dtype == outputs.dtype == np.float32
    for ours, truth, plain in zip(
        (value, grad, outputs), truth_of(shape, activation, kind, True), problem.by_torch(), strict=True
    ):
        assert ours.shape == truth.shape
        as_exact_as(plain, ours, truth)
    assert np.array_equal(problem.value(engine), value)


@every_combination
def test_the_reference_equals_autograd_in_float64(shape, activation, kind):
    double = Problem(shape, activation, kind).by_torch(torch.float64)
    for ours, truth in zip(truth_of(shape, activation, kind), double, strict=True):
        # sums of at most 40,000 terms, in float64
        assert np.linalg.norm(ours - truth) <= 40_000 * 2.0**-53 * np.linalg.norm(truth)


@every_shape
@every_likelihood
def test_weighted_samples_are_as_exact_as_torch(engine, shape, kind):
    problems.weighted_samples_are_as_exact_as_torch(Problem(shape, "gelu", kind, True), engine)


@every_shape
@every_likelihood
def test_weights_of_one_change_no_bit(backend, shape, kind):
    problems.weights_of_one_change_no_bit(Problem(shape, "silu", kind), backend)


@pytest.mark.parametrize("shape", [ODD, "batch over the sample tile"])
@pytest.mark.parametrize("most", [1, 3])
@every_likelihood
def test_a_whole_weight_is_as_many_samples(engine, shape, most, kind):
    weighted, repeated = Problem(shape, "tanh", kind, True), Problem(shape, "tanh", kind, True)
    counts = np.random.default_rng(most).integers(0, most + 1, len(weighted.x))
    weighted.weights = counts.astype(np.float32)
    repeated.x, repeated.y = (np.repeat(a, counts, axis=0) for a in (repeated.x, repeated.y))
    for ours, truth, plain in zip(
        weighted.value_and_grad(engine), repeated.truth()[:2], repeated.by_torch()[:2], strict=True
    ):
        as_exact_as(plain, ours, truth)


@every_shape
@every_likelihood
def test_the_weighted_reference_equals_autograd_in_float64(shape, kind):
    problem = Problem(shape, "silu", kind).weighted()
    for ours, truth in zip(problem.truth(), problem.by_torch(torch.float64), strict=True):
        assert np.linalg.norm(ours - truth) <= 40_000 * 2.0**-53 * np.linalg.norm(truth)  # terms of the longest sum


@pytest.mark.parametrize("shape", [ODD, "no hidden layer"])
@every_activation
@every_likelihood
def test_the_reference_gradient_equals_central_differences(shape, activation, kind):
    problems.gradient_equals_central_differences(Problem(shape, activation, kind))
    problems.gradient_equals_central_differences(Problem(shape, activation, kind).weighted())


@every_shape
def test_every_element_is_written(backend, shape):
    problems.every_element_is_written(Problem(shape, "relu", "gaussian"), backends.choose(backend).ops, backend)


@pytest.mark.parametrize("samples", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_whole_numbers_are_exact_in_every_lane(backend, samples, activation):
    """However the batch fills the panels."""
    for widths in [(3, 2), (5, 3, 2), (35, 13, 2), (16, 24, 8), (33, 7, 6, 1)]:
        problems.whole_numbers_are_exact(fs.MLP(widths, activation), samples, backend, seed=samples)


@every_shape
@pytest.mark.parametrize("blank", ["strokes", "one-hot"])
def test_blank_inputs_are_as_exact_as_torch(engine, shape, blank):
    problem = Problem(shape, "silu", "categorical" if SHAPES[shape][0][-1] > 1 else "gaussian", True)
    problem.x = problems.with_blanks(problem.x, blank)
    for ours, plain, truth in zip(problem.everything(engine), problem.by_torch(), problem.truth(), strict=True):
        as_exact_as(plain, ours, truth)
    assert np.array_equal(problem.value(engine), problem.value_and_grad(engine)[0])


@pytest.mark.parametrize("blank", problems.BLANKS)
@pytest.mark.parametrize("samples", [1, 7, 8, 17, 64, 65, 130, 300, 700])
def test_no_product_of_zeros_is_missed(engine, samples, blank):
    """However many vectors the units of the first layer fill, and groups the batch."""
    for widths in [(3, 2), (35, 13, 2), (160, 24, 8), (133, 7, 6, 1), (40, 61, 2), (30, 130, 1)]:
        problems.whole_numbers_are_exact(fs.MLP(widths, "relu"), samples, engine, seed=samples, blank=blank)


@pytest.mark.parametrize("blank", problems.BLANKS)
def test_the_cpu_misses_no_product_of_zeros_in_several_chunks(blank):
    with problems.threads(1):  # which takes a particle through all groups of a chunk
        problems.whole_numbers_are_exact(fs.MLP((40, 9, 2), "relu"), 4500, "cpu", seed=1, blank=blank)


@pytest.mark.parametrize("blank", problems.BLANKS)
@pytest.mark.parametrize("samples", [16, 17, 64, 130])  # panels that miss many samples have zeros of their own
def test_the_cpu_leaves_out_no_zero_times_infinity(samples, blank):
    """As the reference; engines whose operands are sums of parts make NaN of infinity itself."""
    net = fs.MLP((160, 9, 3), "identity")
    problem = problems.Problem(net, 36, samples, "gaussian", seed=samples)
    problem.x = problems.with_blanks(problem.x, blank)
    weight = net.unpack(problem.theta)["0.weight"]
    for particle, poison in enumerate([NAN, INF, -INF] * 11):
        weight[particle, particle % 9, particle] = poison
    net.unpack(problem.theta)["2.bias"][33:] = INF  # so that the gradient is infinite before it meets the zeros
    with np.errstate(invalid="ignore"):
        truth, ours = problem.everything("reference", np.float32), problem.everything("cpu")
    assert any(np.isnan(part).any() for part in truth[1:])
    for mine, right in zip(ours, truth, strict=True):
        assert np.array_equal(np.isfinite(mine), np.isfinite(right))
        assert np.array_equal(np.isnan(mine), np.isnan(right))


@pytest.mark.parametrize("precision", ops.PRECISIONS)
@pytest.mark.parametrize("samples", [1, 7, 15, 16, 17, 31, 33, 64, 65, 130])
@pytest.mark.parametrize("inputs", [1, 40, 300])  # of which one is not zero, so that many are left out
def test_samples_that_a_vector_misses_overflow_nowhere(engine, inputs, samples, precision):
    """A first unit is 2e38 but for what the only feature takes from it, and 10 times as much in the second layer."""
    net = Layers((dense(inputs, 33), dense(33, 40, "relu"), dense(40, 2)), ("first", "second", "last"))
    problem = problems.Problem(net, 2, samples, "categorical", seed=samples)
    problem.x = np.zeros_like(problem.x)
    problem.x[:, 0] = 1
    parts = net.unpack(problem.theta)
    parts["first.weight"][:, 0, 0], parts["first.bias"][:, 0] = -(2.0**127), 2.0**127
    parts["second.weight"][:, 0, 0] = 8
    truth = problem.everything("reference", np.float32)
    allowed = {"highest": 1e-4, "high": 1e-3, "medium": 0.2}[precision]
    for ours, right in zip(problem.everything(engine, precision=precision), truth, strict=True):
        assert np.isfinite(right).all()
        np.testing.assert_allclose(ours, right, rtol=allowed, atol=allowed * samples)


@pytest.mark.parametrize("samples", [1, 7, 15, 16, 17, 33, 65])
def test_an_infinite_weight_before_a_unit_that_saturates_leaves_gradients_finite(bitwise, samples):
    net = fs.MLP((4, 3, 2), "tanh")
    problem = problems.Problem(net, 2, samples, "categorical", seed=samples)
    problem.x[:] = 1
    problem.theta[:, 0] = INF
    with np.errstate(invalid="ignore"):  # of the gradient of x, which nobody asks for
        truth = problem.everything("reference", np.float32)
    for ours, right in zip(problem.everything(bitwise), truth, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


@every_likelihood
def test_a_batch_is_the_sum_of_its_samples(engine, kind):
    problem = Problem(ODD, "gelu", kind)
    truth, plain = problem.truth(), problem.by_torch()
    x, y, total, grads = problem.x, problem.y, 0.0, 0.0
    for row in range(len(x)):
        problem.x, problem.y = x[row : row + 1], y[row : row + 1]
        value, grad = problem.value_and_grad(engine)
        total, grads = total + value, grads + grad.astype(np.float64)
    as_exact_as(plain[0], total, truth[0])
    as_exact_as(plain[1], grads, truth[1])


@every_activation
@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])  # no number is a rate of e^10,000
def test_activations_and_outputs_of_ten_thousand(engine, activation, kind):
    problem = Problem("widths for one-hot features", activation, kind)
    rng = np.random.default_rng(1)
    for part, size in zip(problem.net.unpack(problem.theta).values(), (10_000, 0, 1, 0), strict=True):
        part[...] = size * rng.choice([-1, -0.5, 0.5, 1], part.shape)
    problem.x = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 40)]  # so that no rounding precedes the loss
    value, grad, outputs = truth = problem.truth()
    assert 1e4 <= np.abs(outputs).max() <= 6e4 or activation == "tanh"
    assert all(np.isfinite(part).all() for part in truth)
    plain = problem.by_torch()
    ours = problem.value_and_grad(engine)
    as_exact_as(plain[0], ours[0], value)
    as_exact_as(plain[1], ours[1], grad)


@every_activation
@every_likelihood
def test_a_particle_that_is_not_a_number_harms_no_other(backend, activation, kind):
    def results(name=None, element=0, poison=0.0):
        problem = Problem(activation=activation, kind=kind)
        if kind == "categorical":
            problem.y[problem.y == 1] = 2  # a class that no label names must not hide its NaN
        if name is not None:
            problem.net.unpack(problem.theta)[name].reshape(len(problem.theta), -1)[2, element] = poison
        with np.errstate(invalid="ignore", over="ignore"):
            return (*problem.value_and_grad(backend), problem.outputs(backend))

    clean, names, others = results(), [p.name for p in Problem().net.parameters], [0, 1, 3, 4]
    # an infinite weight may leave a finite likelihood behind a saturated unit, an infinite output may not
    places = [(name, element, NAN) for name in names for element in (0, 1, -1)]
    places += [(names[-1], element, poison) for element in (0, 1, 2) for poison in (INF, 3e38)]
    for place in places:
        value, grad, outputs = results(*place)
        if place[2] != 3e38:
            assert not np.isfinite(value[2])
            assert not np.isfinite(outputs[2]).all()
        assert not np.isnan(place[2]) or not np.isfinite(grad[2]).all()
        for dirty, pure in zip((value, grad, outputs), clean, strict=True):
            assert np.array_equal(dirty[others], pure[others])


@every_shape
def test_each_particle_alone_gives_the_same_bits(backend, shape):
    problem = Problem(shape, "silu", "bernoulli")
    problems.each_particle_alone_gives_the_same_bits(problem, backend)
    problems.each_particle_alone_gives_the_same_bits(problem.weighted(), backend)


def everything():
    rng = np.random.default_rng(3)
    targets = {"categorical": np.zeros, "bernoulli": np.ones, "gaussian": np.ones, "poisson": np.ones}
    shapes = [((13, 7, 3), 5, 29), ((784, 100, 10), 7, 100), ((3000, 3), 5, 1000), ((40, 9, 2), 3, 4500)]
    for widths, particles, samples in shapes:
        for kind, make in targets.items():
            post = fs.Posterior(fs.MLP(widths, "gelu"), likelihood=kind)
            theta = post.sample_prior(particles)
            x = rng.standard_normal((samples, widths[0]), np.float32)
            x = problems.with_blanks(x, "strokes") if kind == "poisson" else x
            y = make(samples, int) if kind == "categorical" else make((samples, widths[-1]))
            weights = rng.random(samples, np.float32)
            yield from (*post.log_likelihood_and_grad(theta, x, y), post.outputs(theta, x))
            yield from post.log_likelihood_and_grad(theta, x, y, weights=weights)


def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)


def same(problem, backend, theta=None, x=None, y=None, weights=None):
    """Whether other arrays of the same numbers give the same bits."""
    mine = (problem.theta, problem.x, problem.y, problem.weights)
    *arguments, weights = (a if b is None else b for a, b in zip(mine, (theta, x, y, weights), strict=True))
    plain = problem.value_and_grad(backend)
    how = {"weights": weights, "backend": backend}
    other = ops.log_likelihood_and_grad(problem.net, problem.likelihood, *arguments, **how)
    return all(map(np.array_equal, map(np.asarray, other), plain))


def wide(array):
    """The same numbers, of which no two are neighbours."""
    padded = np.full([2 * n for n in array.shape], 99, array.dtype)
    strided = padded[tuple(slice(None, None, 2) for _ in array.shape)]
    strided[...] = array
    strided.flags.writeable = False
    return strided


@every_likelihood
def test_any_memory_is_read(backend, kind):
    problem = Problem(kind=kind).weighted()
    theta, x, y, weights = problem.theta, problem.x, problem.y, problem.weights
    assert same(problem, backend, wide(theta), wide(x), wide(y), wide(weights))
    assert same(problem, backend, np.asfortranarray(theta), np.asfortranarray(x), y)
    assert same(problem, backend, theta, x[::-1].copy()[::-1], y[::-1].copy()[::-1])
    assert same(problem, backend, theta.tolist() and theta, x.tolist(), y.tolist(), weights.tolist())
    assert problem.theta is theta


def test_the_engine_itself_reads_strides():
    """x is packed from any strides; ops copies first, so this is seen only here."""
    problem, engine = Problem(), backends.choose("cpu").ops
    expected = problem.value_and_grad("cpu")
    for x in (wide(problem.x), np.asfortranarray(problem.x), problem.x[::-1, ::-1].copy()[::-1, ::-1]):
        value, grad = np.empty(len(problem.theta)), np.empty_like(problem.theta)
        net = problem.net
        engine.log_likelihood(net.layer_table, 0, 1.0, 0, problem.theta, x, problem.y, None, value, grad)
        assert all(map(np.array_equal, (value, grad), expected))


def test_features_of_any_real_type(backend):
    problem = Problem()
    problem.x = np.round(4 * problem.x)
    for dtype in (np.float64, np.float16, np.int64, np.int8):
        assert same(problem, backend, x=problem.x.astype(dtype))
    problem.x = np.abs(problem.x)
    assert same(problem, backend, x=problem.x.astype(np.uint8))
    problem.x = np.minimum(problem.x, 1)
    assert same(problem, backend, x=problem.x.astype(bool))


def test_labels_of_every_integer_type(backend):
    problem = Problem()
    for dtype in "bBhHiIlL":
        assert same(problem, backend, y=problem.y.astype(dtype))


def test_images_are_flattened(backend):
    problem = Problem("the main job's network")
    assert same(problem, backend, x=problem.x.reshape(-1, 28, 28))
    outputs = ops.network_outputs(problem.net, problem.theta, problem.x.reshape(-1, 1, 28, 28), backend=backend)
    assert np.array_equal(outputs, problem.outputs(backend))


def test_one_output_takes_targets_without_a_column(backend):
    for kind in ("bernoulli", "gaussian"):
        problem = Problem("one output", kind=kind)
        assert same(problem, backend, y=problem.y[:, 0])


def test_torch_tensors_come_back_as_torch_tensors(backend):
    problem = Problem().weighted()
    theta, x, y, weights = map(torch.from_numpy, (problem.theta, problem.x, problem.y, problem.weights))
    theta.requires_grad_()
    assert same(problem, backend, theta, x.T.contiguous().T, y, weights)
    post = fs.Posterior(problem.net, backend=backend)
    results = (*post.log_likelihood_and_grad(theta, x, y), *post.log_density_and_grad(theta, x, y, 2.0))
    results += post.log_likelihood(theta, x, y), post.log_prior(theta), post.outputs(theta, x)
    assert all(type(part) is torch.Tensor for part in results)
    assert [part.dtype for part in results[:4]] == [torch.float64, torch.float32] * 2
    # what comes back is as the particles are, whatever the data are
    assert type(post.log_likelihood(problem.theta, x, y)) is np.ndarray


@pytest.mark.parametrize("scale", [0.7, "fan_in"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_log_density_is_the_prior_and_the_scaled_likelihood(backend, scale, weighted):
    problem = Problem().weighted() if weighted else Problem()
    post = fs.Posterior(problem.net, fs.Normal(scale), backend=backend)
    how = {"likelihood_scale": 3.0, "weights": problem.weights}
    density, grad = post.log_density_and_grad(problem.theta, problem.x, problem.y, **how)
    value, slope = problem.value_and_grad("reference", np.float64)
    theta = problem.theta.astype(np.float64)
    scales = np.concatenate(
        [np.full(p.end - p.begin, p.fan_in**-0.5 if scale == "fan_in" else scale) for p in post.network.parameters]
    )
    prior = -0.5 * np.sum((theta / scales) ** 2 + np.log(2 * np.pi * scales**2), axis=1)
    truth = prior + 3 * value
    likelihood, plain = problem.by_torch()[:2]
    # torch's own error in the likelihood, and one rounding of each part
    parts = np.abs(prior) + np.abs(3 * value)
    assert np.all(np.abs(density - truth) <= 6 * np.abs(likelihood - value) + 2 * EPS * parts)
    as_exact_as(np.float32(3) * plain - (theta / scales**2).astype(np.float32), grad, 3 * slope - theta / scales**2)
    assert np.all(np.abs(post.log_prior(problem.theta) - prior) <= EPS * np.abs(prior))


NET = fs.MLP([4, 5, 3])
ONE = fs.MLP([4, 1])
THETA = np.zeros((2, NET.num_params), np.float32)
FLAT = np.zeros((2, ONE.num_params), np.float32)
X = np.ones((3, 4), np.float32)
Y = np.array([0, 1, 2])


def categorical(b, theta=THETA, x=X, y=Y, weights=None):
    return fs.Posterior(NET, backend=b).log_likelihood_and_grad(theta, x, y, weights=weights)


def bernoulli(b, y):
    return fs.Posterior(ONE, likelihood="bernoulli", backend=b).log_likelihood(FLAT, X, y)


def gaussian(b, y):
    return fs.Posterior(ONE, likelihood="gaussian", backend=b).log_likelihood(FLAT, X, y)


# (what is called, the exception, parts of its sentence)
REFUSED = [
    (lambda b: categorical(b, y=[0, 3, 1]), ValueError, "y[1] is 3; labels must lie in [0, 3)"),
    (lambda b: categorical(b, y=[0, 1, -1]), ValueError, "y[2] is -1; labels must lie in [0, 3)"),
    (lambda b: categorical(b, y=[2**62, 1, 0]), ValueError, "y[0] is 4611686018427387904; labels must"),
    (lambda b: categorical(b, y=[2**32, 1, 0]), ValueError, "y[0] is 4294967296; labels must"),
    (lambda b: categorical(b, y=[0.0, 1, 2]), TypeError, "y has dtype float64; the categorical likelihood needs"),
    (lambda b: categorical(b, y=[True] * 3), TypeError, "y has dtype bool; the categorical likelihood needs"),
    (lambda b: categorical(b, y=Y[:, None]), ValueError, "y has shape (3, 1); the categorical likelihood"),
    (lambda b: categorical(b, y=1), ValueError, "y has shape (); the categorical likelihood"),
    (lambda b: categorical(b, y=Y[:2]), ValueError, "y has 2 rows, but x has 3; they must agree"),
    (lambda b: categorical(b, x=X[:, :3]), ValueError, "x has shape (3, 3); this network needs [B, 4]"),
    (lambda b: categorical(b, x=X[0]), ValueError, "x has shape (4,); this network needs [B, 4]"),
    (lambda b: categorical(b, x=X[:0], y=Y[:0]), ValueError, "x has shape (0, 4); this network needs"),
    (lambda b: categorical(b, x=X.astype(complex)), TypeError, "x has dtype complex128; it must hold real"),
    (lambda b: categorical(b, x=None), TypeError, "x has dtype object; it must hold real numbers"),
    (lambda b: categorical(b, weights=[1, -2, 1]), ValueError, "weights[1] is -2.0; weights must be non-negative and"),
    (lambda b: categorical(b, weights=[1, 1, NAN]), ValueError, "weights[2] is nan; weights must be non-negative and"),
    (lambda b: categorical(b, weights=[INF, 1, 1]), ValueError, "weights[0] is inf; weights must be non-negative and"),
    (lambda b: categorical(b, weights=[1, 1]), ValueError, "weights has shape (2,); there must be one for each sample"),
    (lambda b: categorical(b, weights=X), ValueError, "weights has shape (3, 4); there must be one for each sample"),
    (lambda b: categorical(b, weights=1.0), ValueError, "weights has shape (); there must be one for each sample"),
    (lambda b: categorical(b, weights=["a"] * 3), TypeError, "weights has dtype <U1; it must hold real numbers"),
    (lambda b: categorical(b, THETA[:, 1:]), ValueError, "particles has shape (2, 42); this network needs [P, 43]"),
    (lambda b: categorical(b, THETA[0]), ValueError, "particles has shape (43,); this network needs [P, 43]"),
    (lambda b: categorical(b, THETA[:0]), ValueError, "particles has shape (0, 43); this network needs"),
    (lambda b: categorical(b, THETA.astype(int)), TypeError, "particles has dtype int64; it must be float32"),
    (lambda b: fs.Posterior(NET, backend=b).outputs(THETA, X[:0]), ValueError, "x has shape (0, 4)"),
    (lambda b: fs.Posterior(NET, backend=b).log_prior(THETA[:, 1:]), ValueError, "particles has shape (2, 42)"),
    (lambda b: bernoulli(b, [0, 1.5, 1]), ValueError, "y[1, 0] is 1.5; the bernoulli likelihood needs numbers in"),
    (lambda b: bernoulli(b, [0, 1, -1]), ValueError, "y[2, 0] is -1.0; the bernoulli likelihood needs"),
    (lambda b: bernoulli(b, [NAN, 1, 1]), ValueError, "y[0, 0] is nan; the bernoulli likelihood needs"),
    (lambda b: bernoulli(b, np.zeros((3, 2))), ValueError, "y has shape (3, 2); it must be [B] or [B, 1]"),
    (lambda b: gaussian(b, ["a"] * 3), TypeError, "y has dtype <U1; the gaussian likelihood needs numbers"),
    (lambda b: gaussian(b, 1.0), ValueError, "y has shape (); it must be [B] or [B, 1]"),
    (lambda b: fs.MLP([4, 3], activation="sin"), ValueError, "activation is 'sin'; it must be one of identity, relu"),
    (lambda b: fs.Posterior(NET, likelihood="binomial"), ValueError, "likelihood is 'binomial'; it must be one of"),
    (lambda b: fs.Posterior(NET, precision="low"), ValueError, "precision is 'low'; it must be one of highest"),
    (lambda b: fs.Posterior(NET, prior=1.0), TypeError, "prior is 1.0; it must be Normal, Laplace, StudentT or"),
    *(
        (lambda b, v=v: fs.Gaussian(noise=v), ValueError, f"noise is {v!r}; it must be a positive standard")
        for v in (0, 0.0, -1.0, NAN, INF)
    ),
    *(
        (lambda b, v=v: fs.Normal(scale=v), ValueError, f"scale is {v!r}; it must be a positive number, 'fan_in' or")
        for v in (0, -1.0, NAN, INF, True, "fan_out", None)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_sentence(backend, call, error, sentence):
    with pytest.raises(error) as raised:
        call(backend)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_float64_particles_are_for_the_reference_alone(engine):
    for call in (categorical, lambda b, theta: fs.Posterior(NET, backend=b).outputs(theta, X)):
        assert call("reference", THETA.astype(float))[0].dtype == np.float64
        with pytest.raises(TypeError, match="particles has dtype float64; the engine computes in float32"):
            call(engine, THETA.astype(float))


def test_a_bad_label_is_found_wherever_it_stands(backend):
    problem = Problem("chunks of the largest size")
    for row in (0, 4096, len(problem.y) - 1):
        y = problem.y.copy()
        y[row] = 2
        with pytest.raises(ValueError, match=rf"y\[{row}\] is 2; labels must lie in \[0, 2\)"):
            ops.log_likelihood(problem.net, problem.likelihood, problem.theta, problem.x, y, backend=backend)
