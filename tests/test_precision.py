"""What products of bfloat16 numbers may lose, and that they lose nothing where the processor is no faster with them."""

from functools import cache

import numpy as np
import problems
import pytest
import test_trajectory
import torch
from problems import EPS, threads_change_no_bit

import fastsmc as fs
from fastsmc import backends, ops
from fastsmc.likelihoods import LIKELIHOODS
from fastsmc.networks import ACTIVATIONS

TINY = np.finfo(np.float32).tiny
HIGH = 3e-5  # of the norm of the truth
ROUNDING = 2.0**-9  # of one operand to bfloat16

# widths, particles, samples. A block of an operand is 32 x 32, a tile 384 samples, a chunk up to 4096.
SHAPES = {
    "odd widths": ((37, 67, 5, 3), 5, 29),
    "few inputs": ((3, 97, 61, 2), 5, 29),
    "no hidden layer": ((75, 30), 3, 50),
    "batch of one": ((70, 33, 3), 7, 1),
    "one of everything": ((1, 1, 1), 1, 1),
    "one more than a block": ((33, 65, 33, 17), 2, 33),
    "whole blocks": ((64, 32, 32), 2, 64),
    "half blocks": ((16, 48, 16), 2, 48),
    "batch over the tile": ((90, 19, 2), 3, 389),
    "the main job's network": ((784, 100, 10), 2, 20),
    "several chunks": ((35, 32, 2), 2, 4096 + 5),
}


# not counts: a rate, the exponential of an output, has a relative error as large as the output's absolute one
every_kind = pytest.mark.parametrize("kind", [kind for kind in LIKELIHOODS if kind != "poisson"])


class Problem(problems.Problem):
    def __init__(self, shape="odd widths", activation="tanh", kind="categorical", noise=0.3):
        widths, particles, samples = SHAPES.get(shape, shape)
        super().__init__(fs.MLP(widths, activation), particles, samples, kind, sum(widths) + samples, noise)

    def by(self, backend, precision="highest"):
        return self.everything(backend, precision=precision)

    def by_torch(self, precision):
        """In float32, or mixed."""
        return super().by_torch(mixed=precision == "medium")


def errors(found, truth, order=2):
    """Of each particle, relative to the norm of the truth; of the log-likelihoods, all at once."""
    rows = [np.asarray(a, np.float64).reshape(len(truth) if np.ndim(truth) > 1 else 1, -1) for a in (found, truth)]
    size = np.linalg.norm(rows[1], order, axis=1)
    return np.linalg.norm(rows[0] - rows[1], order, axis=1) / np.maximum(size, TINY)


def allowed(precision, plain, truth, order=2):
    """Twice torch's error in that precision and one rounding; for `high`, which torch has not, its stated bound."""
    if precision == "high":
        return HIGH
    return 2 * np.max(errors(plain, truth, order)) + (EPS if precision == "highest" else ROUNDING)


def are_bounded(precision, found, exact, problem):
    """The value, gradient and outputs of a problem, particle by particle.

    The bound of `high` is on the whole of each: no fixed number bounds single particles whose sums cancel. Theirs is
    by comparison: twice torch's error in float32, times how much coarser two operands of 2^-18 are than 2^-24.
    """
    for ours, truth, single, plain in zip(
        found, exact, problem.by_torch("highest"), problem.by_torch(precision), strict=True
    ):
        assert ours.shape == truth.shape
        limit = allowed(precision, plain, truth)
        if precision == "high":
            assert np.linalg.norm(ours - truth) <= limit * max(np.linalg.norm(truth), TINY)
            limit = np.maximum(limit, 2 * 2.0**7 * errors(single, truth))
        assert np.all(errors(ours, truth) <= limit)


@cache
def truth_of(*problem):
    return Problem(*problem).truth()


every_precision = pytest.mark.parametrize("precision", ops.PRECISIONS)
# float32 is held to torch, in the mean over particles, in test_mlp.py
every_lower_precision = pytest.mark.parametrize("precision", ["high", "medium"])


# the least inputs to the units of a whole block; devices have all precisions for any
IN_USE = {"amx": {"high": 16, "medium": 8}, "avx512bf16": {"medium": 8}}


@pytest.mark.parametrize("inputs", [7, 8, 15, 16])
@every_precision
def test_the_precision_in_use_is_what_the_processor_is_faster_with(engine, precision, inputs):
    least = 0
    if engine == "cpu":
        least = IN_USE.get(backends.choose("cpu").ops.simd_level(), {}).get(precision, np.inf)
    posterior = fs.Posterior(fs.MLP((inputs, 32)), precision=precision, backend=engine)
    assert posterior.precision_in_use == (precision if inputs >= least else "highest")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@every_kind
@every_lower_precision
def test_errors_are_bounded(engine, precision, shape, activation, kind):
    problem = Problem(shape, activation, kind)
    are_bounded(precision, problem.by(engine, precision), truth_of(shape, activation, kind), problem)


@pytest.mark.parametrize("shape", SHAPES)
@every_kind
@every_lower_precision
def test_errors_of_weighted_samples_are_bounded(engine, precision, shape, kind):
    problem = Problem(shape, "gelu", kind).weighted()
    are_bounded(precision, problem.by(engine, precision), problem.truth(), problem)


@pytest.mark.parametrize("shape", SHAPES)
@every_kind
@every_precision
def test_weights_of_one_change_no_bit(engine, precision, shape, kind):
    problems.weights_of_one_change_no_bit(Problem(shape, kind=kind), engine, precision=precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@every_lower_precision
def test_every_activation(engine, precision, activation):
    problem = Problem("one more than a block", activation)
    are_bounded(precision, problem.by(engine, precision), problem.truth(), problem)


@pytest.mark.parametrize("shape", ["whole blocks", "batch over the tile"])
@every_lower_precision
def test_lower_precision_is_in_use_and_not_another(engine, precision, shape):
    problem = Problem(shape)
    exact = problem.by(engine)
    same = [np.array_equal(a, b) for a, b in zip(problem.by(engine, precision), exact, strict=True)]
    in_use = ops.precision_in_use(problem.net, precision, backend=engine)
    assert not any(same) if in_use == precision else all(same)


@pytest.fixture
def level():
    """The instruction set of the cpu engine."""
    if not backends.BACKENDS["cpu"].available()[0]:
        pytest.skip("the cpu engine is not available")
    return backends.choose("cpu").ops.simd_level()


def chained(total, x, weight, columns):
    """Fused additions of one product after the other."""
    for k in columns:
        total = (total + np.outer(x[:, k], weight[:, k])).astype(np.float32)
    return total


def by_pairs(x, weight):
    """A chain in which the second of each pair comes first: vdpbf16ps."""
    order = np.arange(x.shape[1]).reshape(-1, 2)[:, ::-1]
    return chained(np.zeros((len(x), len(weight)), np.float32), x, weight, order.ravel())


def by_tiles(x, weight):
    """Of every 32 products those at even and at odd places in a chain of their own: tdpbf16ps."""
    zero = np.zeros((len(x), len(weight)), np.float32)
    total = zero
    for first in range(0, x.shape[1], 32):
        total = total + sum(chained(zero, x, weight, range(first + odd, first + 32, 2)) for odd in (0, 1))
    return total


def test_sums_of_bfloat16_products_are_in_the_order_of_the_instruction(level):
    problem = Problem(((416, 21), 1, 33), "identity")
    x, theta = (torch.as_tensor(a).bfloat16().double().numpy() for a in (problem.x, problem.theta[0]))
    weight, bias = theta[: 21 * 416].reshape(21, 416), problem.theta[0, 21 * 416 :]
    found, exact = (problem.by("cpu", precision)[2][0] for precision in ("medium", "highest"))
    instructions = {"amx": by_tiles, "avx512bf16": by_pairs}
    assert np.array_equal(found, instructions[level](x, weight) + bias if level in instructions else exact)


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("particles", [1, 5])
def test_what_is_mostly_zeros_is_multiplied_in_float32_where_that_is_faster(level, particles, density):
    problem = Problem(((100, 40, 3), particles, 300))
    problem.x *= np.random.default_rng(1).random(problem.x.shape) < density
    same = [np.array_equal(a, b) for a, b in zip(problem.by("cpu"), problem.by("cpu", "medium"), strict=True)]
    rounds = level == "amx" or (level == "avx512bf16" and density > 0.5)
    assert not any(same) if rounds else all(same)


@every_precision
def test_large_logits_and_a_saturated_softmax(engine, precision):
    problem = Problem("odd widths", "relu")
    problem.theta *= np.float32(8)  # in four layers: logits of thousands
    value, grad, outputs = problem.by(engine, precision)
    truth = problem.truth()
    plain = problem.by_torch(precision)
    assert np.abs(truth[2]).max() > 300
    assert np.isfinite(value).all()
    assert np.isfinite(grad).all()
    assert np.max(errors(outputs, truth[2])) <= allowed(precision, plain[2], truth[2])
    # what is wrong with a logit is wrong, as much, with the log-likelihood and, relatively, with the gradient
    logits = np.abs(truth[2]).max(axis=(1, 2))
    wrong = allowed(precision, plain[2], truth[2]) * logits
    assert np.all(np.abs(value - truth[0]) <= 2 * len(problem.x) * wrong)
    if precision != "medium":
        assert np.all(errors(grad, truth[1]) <= np.maximum(wrong, allowed(precision, plain[1], truth[1])))


@pytest.mark.parametrize("what", ["x", "theta", "products"])
@every_precision
def test_denormal_numbers(engine, precision, what):
    problem = Problem("whole blocks", "identity", "gaussian")
    if what == "x":
        problem.x *= np.float32(1e-40)
    elif what == "theta":
        problem.theta[:, ::2] *= np.float32(1e-40)
    else:
        problem.x *= np.float32(1e-20)
        problem.theta *= np.float32(1e-20)
    flushed = max(problem.net.widths) * TINY  # what a sum loses where denormal numbers count as zero
    parts = zip(problem.by(engine, precision), problem.by_torch(precision), problem.truth(), strict=True)
    for found, plain, truth in parts:
        # a factor of the gradient is as large as the targets over the noise squared, for 64 samples
        error = np.abs(found - truth).max()
        assert error <= allowed(precision, plain, truth, np.inf) * np.abs(truth).max() + 1e5 * flushed


@every_precision
@pytest.mark.parametrize("weight", [3.4e38, -3.4e38, np.inf, -np.inf])
def test_weights_beyond_the_numbers_of_bfloat16(bitwise, weight, precision):
    problem = Problem(((37, 67, 5, 3), 5, 29), "tanh")
    problem.theta[:, 0], problem.x[:, 0] = weight, 1 / 3  # no part of which is zero
    with np.errstate(invalid="ignore"):
        truth = problem.truth()
    assert all(np.isfinite(part).all() for part in truth)
    allowed = {"highest": 1e-4, "high": 1e-3, "medium": 0.2}[precision]
    for ours, exact in zip(problem.by(bitwise, precision), truth, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=allowed, atol=allowed * np.abs(exact).max())


@every_precision
def test_cancellation_in_the_log_likelihood_of_60_000_points(engine, precision):
    shape = ((40, 32, 1), 2, 60_000)
    problem = Problem(shape, "tanh", "gaussian", noise=0.1)
    residual = 0.05 * np.random.default_rng(3).standard_normal((60_000, 1))
    problem.y = (problem.truth()[2][0] + residual).astype(np.float32)
    terms = -0.5 * ((problem.y - problem.truth()[2]) / 0.1) ** 2
    constant = -np.log(0.1 * np.sqrt(2 * np.pi))
    size = np.abs(terms).sum(axis=(1, 2)) + 60_000 * constant
    value, grad, _ = problem.by(engine, precision)
    truth, plain = problem.truth(), problem.by_torch(precision)
    bound = HIGH if precision == "high" else EPS if precision == "highest" else ROUNDING
    error, theirs = np.abs(value - truth[0]), np.abs(plain[0] - truth[0])
    # residuals are small differences of outputs and targets: their error is relative to the outputs
    lost = bound * np.sqrt((truth[2] ** 2).sum(axis=(1, 2)) * (2 * np.abs(terms)).sum(axis=(1, 2))) / 0.1
    assert np.all(error <= 2 * (0 if precision == "high" else theirs) + bound * size + lost)
    assert np.isfinite(grad).all()


@every_precision
def test_a_broken_particle_stays_alone(engine, precision):
    problem = Problem("batch over the tile")
    sound = problem.by(engine, precision)
    for broken in (np.nan, np.inf, -np.inf):
        problem.theta[1] = broken
        value, grad, outputs = problem.by(engine, precision)
        assert not np.isfinite(value[1])
        assert all(np.array_equal(a[[0, 2]], b[[0, 2]]) for a, b in zip((value, grad, outputs), sound, strict=True))


@pytest.mark.parametrize("shape", ["odd widths", "batch over the tile", "several chunks"])
@every_precision
def test_each_particle_alone_gives_the_same_bits(engine, precision, shape):
    problem = Problem(shape).weighted()
    theta, together = problem.theta, problem.by(engine, precision)
    for i in range(len(theta)):
        problem.theta = theta[i : i + 1]
        for whole, alone in zip(together, problem.by(engine, precision), strict=True):
            assert np.array_equal(whole[i], alone[0])


def at(post, precision, backend):
    return fs.Posterior(post.network, post.prior, post.likelihood, precision, backend)


@pytest.mark.parametrize("case", ["one chunk", "one particle of many groups"])
@every_precision
def test_a_trajectory_is_its_steps(engine, precision, case):
    post, theta, v, x, y = test_trajectory.problem(case)
    post, plan = at(post, precision, engine), (x, y, 0.01, 2, 1.7, 0.6, test_trajectory.weights_of(y))
    apart = test_trajectory.by_steps(post, theta.copy(), v.copy(), *plan)
    together = test_trajectory.in_one(post, theta.copy(), v.copy(), *plan)
    assert all(np.array_equal(a, b) for a, b in zip(apart, together, strict=True))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_trajectory_goes_where_float64_goes(engine, precision):
    post, theta, v, x, y = test_trajectory.problem("one chunk")
    plan = (x, y, 0.005, 4, 1.0, 0.3)
    found = test_trajectory.in_one(at(post, precision, engine), theta.copy(), v.copy(), *plan)
    exact = test_trajectory.in_one(post.on("reference"), theta.astype(float), v.astype(float), *plan)
    for ours, truth in zip(found, exact, strict=True):
        error = np.linalg.norm(ours - truth) / np.linalg.norm(truth)
        assert error <= {"high": HIGH, "medium": 8 * ROUNDING}[precision]  # 4 steps, 2 operands


def everything():
    for precision in ops.PRECISIONS:
        for shape in ("odd widths", "batch over the tile", "several chunks"):
            yield from Problem(shape).by("cpu", precision)
            yield from Problem(shape).weighted().by("cpu", precision)
        yield from Problem(((36, 64, 3), 1, 4000)).by("cpu", precision)  # fewer particles than threads


@pytest.mark.usefixtures("level")
def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)
