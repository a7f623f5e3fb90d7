"""The Triton engine's densities, in Triton's interpreter or on a GPU."""

import math

import numpy as np
import problems
import pytest
import test_precision
import torch
from problems import as_exact_as, fewer_interpreted
from test_convolution import Images

import fastsmc as fs
from fastsmc.backends import INTERPRETED
from fastsmc.likelihoods import LIKELIHOODS
from fastsmc.networks import ACTIVATIONS, dense
from fastsmc.ops import PRECISIONS

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("Triton kernels need a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from fastsmc.kernels import dot, elementary, tiles
from fastsmc.kernels.evaluation import log_likelihood, network_outputs, precision_in_use
from fastsmc.kernels.losses import FINE
from fastsmc.kernels.sums import sum_in_any_order
from fastsmc.kernels.tiles import Measured, Tiles, choose_tiles

DEVICE = "cpu" if INTERPRETED else "cuda"
ODD = "odd widths"
USUAL = None  # tiles as the engine chooses them
SMALL = Tiles(samples=16, units=16, depth=16)
SLICED = Tiles(samples=16, units=16, depth=16, slice=16)
CHUNKED = Tiles(samples=16, units=16, depth=16, slice=16, chunk=32, packed=1)
CROWDED = Tiles(samples=16, units=16, depth=16, slice=32, chunk=64, scratch=20_000, packed=1)  # bytes
PACKED = Tiles(samples=16, units=16, depth=16, packed=1)

# widths, particles, samples, tiles: one for every regime
SHAPES = {
    ODD: ((13, 7, 5, 3), 3, 29, USUAL),
    "no hidden layer": ((6, 4), 3, 50, USUAL),
    "one particle": ((5, 4, 2), 1, 33, USUAL),
    "batch of one": ((5, 4, 3), 3, 1, USUAL),
    "one of everything": ((1, 1, 1), 1, 1, USUAL),
    "batch over the sample tile": ((6, 5, 2), 2, 150, USUAL),
    "widths over every tile": ((37, 40, 21, 19), 2, 19, SMALL),
    "more outputs than a tile": ((5, 35), 2, 17, SMALL),
    "whole tiles": ((32, 16, 16), 2, 32, SMALL),
    "weights split once": ((37, 40, 5), 3, 20, PACKED),
    "equal layers in a row": ((7, 4, 4, 4, 6, 6, 6, 6, 2), 2, 19, USUAL),
    "equal layers behind the first, which goes alone": ((9, 5, 5, 5, 5, 3), 2, 20, PACKED),
    "several slices of one chunk": ((6, 5, 3), 2, 40, SLICED),
    "several chunks of several slices": ((6, 5, 3), 2, 80, CHUNKED),
    "particles in groups, chunks without a slice": ((33, 17, 3), 3, 18, CROWDED),
}

BUSY = {
    "a first layer alone": ((784, 100, 100, 10), 64, 1000, USUAL),
    "weights split where they are read": ((784, 100, 100, 10), 64, 64, USUAL),
    "a small network": ((64, 32, 10), 256, 256, USUAL),
    "groups and chunks": ((37, 40, 21, 19), 64, 150, CROWDED),
}
"""Shapes of more programs than a card runs at a time, or of many tiles."""

CUT_OTHERWISE = (ODD, "widths over every tile", "weights split once", "several chunks of several slices")
some_shapes = fewer_interpreted(["shape"], SHAPES, kept=lambda shape: shape in CUT_OTHERWISE)
every_activation = fewer_interpreted(
    ["activation", "precision"],
    ACTIVATIONS,
    PRECISIONS,
    kept=lambda a, precision: precision == "highest" or a == "silu",
)
every_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)


def on_device(array):
    return None if array is None else torch.from_numpy(array).to(DEVICE)


class Problem(problems.Problem):
    def __init__(self, shape=ODD, activation="tanh", kind="categorical"):
        widths, particles, samples, self.tiles = (SHAPES | BUSY)[shape]
        super().__init__(fs.MLP(widths, activation), particles, samples, kind, seed=sum(widths) + samples)

    def data(self):
        y = self.likelihood.targets(self.y, self.net.num_outputs)
        return *map(on_device, (self.x, y, self.weights)), self.likelihood.code, self.likelihood.noise

    def by_triton(self, precision="highest", with_grad=True):
        """Value, gradient and outputs, written over NaN, and the status."""
        x, y, weights, code, noise = self.data()
        theta, table, level = on_device(self.theta), self.net.layer_table, PRECISIONS.index(precision)
        value = torch.full((len(theta),), torch.nan, dtype=torch.float64, device=DEVICE)
        grad = torch.full_like(theta, torch.nan) if with_grad else None
        outputs = torch.full((len(theta), len(x), self.net.num_outputs), torch.nan, device=DEVICE)
        status = log_likelihood(table, code, noise, level, theta, x, y, weights, value, grad, tiles=self.tiles)
        value += self.likelihood.constant(y, weights)
        network_outputs(table, level, theta, x, outputs, tiles=self.tiles)
        found = [None if part is None else part.cpu().numpy() for part in (value, grad, outputs)]
        return (*found, None if status is None else status.item())


def is_exact(problem, precision):
    *found, status = problem.by_triton(precision)
    assert status == (FINE.value if problem.likelihood.name == "categorical" else None)
    truth = problem.truth()
    if precision == "highest":
        for ours, exact, plain in zip(found, truth, problem.by_torch(), strict=True):
            assert ours.shape == exact.shape
            as_exact_as(plain, ours, exact)
    else:
        plain = problems.Problem.by_torch
        problem.by_torch = lambda level: plain(problem, mixed=level == "medium")
        test_precision.are_bounded(precision, found, truth, problem)


@fewer_interpreted(
    ["shape", "precision"],
    SHAPES,
    PRECISIONS,
    kept=lambda shape, precision: precision == "highest" or shape in CUT_OTHERWISE,
)
def test_every_shape_is_as_exact_as_torch(shape, precision):
    is_exact(Problem(shape, "gelu").weighted(), precision)


@fewer_interpreted(
    ["kind", "precision", "weighted"],
    LIKELIHOODS,
    PRECISIONS,
    [False, True],
    kept=lambda kind, precision, weighted: precision == "highest" or (weighted and kind in ("categorical", "gaussian")),
)
def test_every_likelihood_is_as_exact_as_torch(kind, precision, weighted):
    if kind == "poisson" and precision != "highest":
        pytest.skip("a rate has a relative error as large as the absolute one of its logarithm")
    for shape in (ODD, "more outputs than a tile"):
        problem = Problem(shape, kind=kind)
        is_exact(problem.weighted() if weighted else problem, precision)


@every_activation
def test_every_activation_is_as_exact_as_torch(activation, precision):
    is_exact(Problem(ODD, activation), precision)


@some_shapes
def test_the_value_without_the_gradient_is_the_same(shape):
    problem = Problem(shape, "silu").weighted()
    assert np.array_equal(problem.by_triton(with_grad=False)[0], problem.by_triton()[0])


def each_particle_alone_gives_the_same_bits(problem):
    theta, together = problem.theta, problem.by_triton()
    assert all(map(np.array_equal, problem.by_triton(), together))
    for p in range(len(theta)):
        problem.theta = theta[p : p + 1]
        *alone, _ = problem.by_triton()
        assert all(np.array_equal(part[0], whole[p]) for part, whole in zip(alone, together[:3], strict=True))


@some_shapes
def test_each_particle_alone_gives_the_same_bits(shape):
    each_particle_alone_gives_the_same_bits(Problem(shape, "relu"))


@pytest.mark.gpu
@pytest.mark.large
@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one program at a time, and no races")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", BUSY)
def test_repeated_gradients_have_the_same_bits(shape, precision):
    """What threads leave one another in global memory is not watched by racecheck; a race would show in some bits."""
    problem = Problem(shape)
    first = problem.by_triton(precision)
    for _ in range(100):
        assert all(map(np.array_equal, problem.by_triton(precision), first))


@every_likelihood
def test_weights_of_one_change_no_bit(kind):
    problem = Problem(kind=kind)
    plain = problem.by_triton()
    problem.weights = np.ones(len(problem.x), np.float32)
    found = problem.by_triton()
    assert all(map(np.array_equal, plain[1:], found[1:]))
    assert np.array_equal(plain[0], found[0])


@pytest.mark.parametrize("samples", [1, 16, 17])
def test_whole_numbers_are_exact(samples):
    """Sums of small whole numbers have no rounding: no bit of the gradient may differ, in any precision."""
    problem = Problem(activation="relu", kind="gaussian")
    rng = np.random.default_rng(samples)
    problem.likelihood = fs.Gaussian()
    problem.tiles, problem.theta = SMALL, rng.integers(-1, 2, problem.theta.shape).astype(np.float32)
    problem.x, problem.y = (rng.integers(-1, 2, (samples, n)).astype(np.float32) for n in (13, 3))
    truth = problem.truth()
    for precision in PRECISIONS:
        _, grad, outputs, _ = problem.by_triton(precision)
        assert np.array_equal(outputs, truth[2])
        if np.abs(truth[1]).max() < 2**8 or precision == "highest":
            assert np.array_equal(grad, truth[1])


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_particle_that_is_not_a_number_harms_no_other(kind):
    problem = Problem("particles in groups, chunks without a slice", "relu", kind)
    clean = problem.by_triton()
    for poison in (np.nan, np.inf):
        problem.theta[1] = poison
        value, grad, outputs, _ = problem.by_triton()
        assert not np.isfinite(value[1])
        for dirty, pure in zip((value, grad, outputs), clean[:3], strict=True):
            assert np.array_equal(dirty[::2], pure[::2])


@pytest.mark.parametrize("shape", [ODD, "several chunks of several slices"])
@pytest.mark.parametrize("label", [-1, "classes", 2**62, -(2**63)])
def test_the_first_bad_label_is_reported(shape, label):
    problem = Problem(shape)
    label = problem.net.num_outputs if label == "classes" else label
    problem.y[len(problem.y) // 2 :: 7] = label
    assert problem.by_triton(with_grad=False)[3] == 10 << 48 | len(problem.y) // 2


@pytest.mark.parametrize("tiles", [USUAL, PACKED], ids=["usual", "packed"])
def test_equal_layers_are_told_apart_by_the_activation_above_them(tiles):
    """One that is compiled with those behind it reads what they read."""
    activations = ["tanh", "relu", "relu", "silu", "silu", "silu", "tanh", "identity", "identity"]
    problem = Problem()
    layers = (dense(6, 5, "gelu"), *(dense(5, 5, activation) for activation in activations), dense(5, 3))
    problems.Problem.__init__(problem, Images(layers), 3, 20, "categorical", seed=2)
    problem.tiles = tiles
    is_exact(problem, "highest")


def test_precisions_are_in_use_and_not_another():
    problem = Problem("whole tiles")
    found = [problem.by_triton(precision) for precision in PRECISIONS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not any(map(np.array_equal, found[first][:3], found[second][:3]))
    assert [precision_in_use(problem.net.layer_table, code) for code in range(3)] == [0, 1, 2]


def test_tiles_follow_from_shapes():
    for precision in range(3):
        assert choose_tiles(precision, 1).samples == 16
        assert choose_tiles(precision, 20).samples == 32
        assert choose_tiles(precision, 10**6) == choose_tiles(precision, 256)


def test_tiles_that_were_measured_on_a_card_are_taken_there(monkeypatch):
    lines = [Measured("9.0", 1, batch, 32, depth, 2) for batch, depth in ((64, 16), (256, 32), (1000, 64))]
    monkeypatch.setattr(tiles, "_table", lambda: tuple(lines))
    assert [choose_tiles(1, batch, "9.0").depth for batch in (1, 64, 65, 300)] == [16, 16, 32, 64]
    assert choose_tiles(1, 1001, "9.0") == choose_tiles(1, 1001)  # larger than all that were measured
    best = choose_tiles(1, 300, "9.0")
    assert (best.samples, best.warps, best.stages, best.slice) == (32, 4, 2, choose_tiles(1, 300).slice)
    assert choose_tiles(1, 20, "9.0").samples == 32
    assert choose_tiles(1, 10, "9.0").samples == 16
    assert choose_tiles(0, 300, "9.0") == choose_tiles(0, 300)
    assert choose_tiles(1, 300, "10.0") == choose_tiles(1, 300)


def test_the_table_of_tiles_can_be_read():
    assert all(line.samples >= 16 and line.depth >= 16 for line in tiles._table())


def in_parts(a):
    """Float32 as three bfloat16 numbers, as the kernels split it."""
    parts, rest = [], torch.from_numpy(a)
    for _ in range(3):
        parts.append(rest.bfloat16().float())
        rest = rest - parts[-1]
    return [part.numpy() for part in parts]


@pytest.mark.parametrize("terms", [1, 16, 784, 1024])
def test_six_products_of_bfloat16_are_as_exact_as_float32(terms):
    """What the interpreter cannot show: the arithmetic of `highest`, in NumPy."""
    rng = np.random.default_rng(terms)
    a, b = rng.standard_normal((32, terms), np.float32), rng.standard_normal((terms, 32), np.float32)
    left, right = in_parts(a), in_parts(b)
    assert np.array_equal(sum(part.astype(float) for part in left), a)
    found = np.zeros((32, 32), np.float32)
    for k in range(0, terms, 16):  # the depth of one instruction, whose products are exact
        step = np.zeros((32, 32), np.float32)
        for i, j in ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)):
            step += (left[i][:, k : k + 16].astype(float) @ right[j][k : k + 16].astype(float)).astype(np.float32)
        found += step
    truth = a.astype(float) @ b.astype(float)
    plain = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    as_exact_as(plain, found, truth)
    once = (left[0].astype(float) @ right[0].astype(float)).astype(np.float32)
    assert np.linalg.norm(once - truth) > 100 * np.linalg.norm(found - truth)


@triton.jit
def _rounded_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, dot.rounded(tl.load(x + i)).to(tl.float32))


def test_rounding_is_torchs():
    """Of ties, of what becomes infinite, of subnormals, and of what is not a number."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1024, dtype=np.uint32)
    bits[::2] = bits[::2] & 0xFFFF0000 | 0x8000
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 3.4028235e38, 1e-45], np.float32).view(np.uint32)
    bits[: len(special)] = special
    x = on_device(bits.view(np.float32))
    y = torch.zeros_like(x)
    _rounded_kernel[(1,)](x, y, len(x))
    assert np.array_equal(y.cpu(), x.bfloat16().float().cpu(), equal_nan=True)


@triton.jit
def _sums_kernel(x, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)
    tile = tl.load(x + row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    tl.store(y + row, sum_in_any_order(tile, 1))


def sums(rows):
    y = torch.full((len(rows),), np.nan, dtype=torch.float64, device=DEVICE)
    _sums_kernel[(1,)](on_device(rows), y, *rows.shape)
    return y.cpu().numpy()


def test_no_order_changes_a_sum():
    rng = np.random.default_rng(4)
    terms = (10 ** rng.uniform(-15, 0, 128) * rng.choice([-1, 1], 128)).astype(np.float32)
    orders = np.stack([rng.permutation(terms) for _ in range(64)])
    assert len(set(orders.astype(np.float64).cumsum(axis=1)[:, -1])) > 1  # as plain sums differ
    ours = sums(orders)
    assert len(set(ours)) == 1
    assert abs(ours[0] - math.fsum(terms)) <= 128 * 2.0**-53 * 256 * np.abs(terms).max()


def test_sums_of_what_is_not_finite():
    row = np.full(16, 2.5, np.float32)
    beside = [[0, 0], [np.inf, 0], [-np.inf, 0], [np.inf, -np.inf], [np.nan, 0], [3e38, 3e38]]
    rows = np.stack([row * 0, *(np.append(pair, row[2:]).astype(np.float32) for pair in beside), row])
    assert np.array_equal(sums(rows), rows.astype(np.float64).sum(axis=1), equal_nan=True)


@triton.jit
def _combine_kernel(x, y, OPERATION: tl.constexpr):
    a, b = tl.load(x), tl.load(x + 1)
    if OPERATION == "sum":
        tl.store(y, a + b)
    elif OPERATION == "difference":
        tl.store(y, a - b)
    else:
        tl.store(y, a * b)


@pytest.mark.skipif(not INTERPRETED, reason="a device does not look for overflow")
@pytest.mark.parametrize(
    ("operation", "a", "b", "beyond"),
    [("sum", 2**31 - 2, 1, 2), ("difference", -(2**31) + 1, 1, 2), ("product", 2**15, 2**16 - 1, 2**16)],
)
def test_overflow_is_found(operation, a, b, beyond):
    y = torch.zeros(1, dtype=torch.int32)
    _combine_kernel[(1,)](torch.tensor([a, b], dtype=torch.int32), y, operation)
    with pytest.raises(Exception, match="int32 overflow detected"):
        _combine_kernel[(1,)](torch.tensor([a, beyond], dtype=torch.int32), y, operation)


@triton.jit
def _elementary_kernel(x, y, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + i, mask=i < n, other=1)
    if FUNCTION == "exp":
        z = elementary.exp(z)
    elif FUNCTION == "log":
        z = elementary.log(z)
    elif FUNCTION == "tanh":
        z = elementary.tanh(z)
    elif FUNCTION == "sigmoid":
        z = elementary.sigmoid(z)
    elif FUNCTION == "softplus":
        z = elementary.softplus(z)
    tl.store(y + i, z, mask=i < n)


ELEMENTARY = {
    # truth, from, to, units in the last place
    "exp": (np.exp, -87.3, 88.7, 2),
    "log": (np.log, 1e-30, 30, 1),
    "tanh": (np.tanh, -10, 10, 3),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -80, 20, 3),
    "softplus": (lambda x: np.logaddexp(0, x), -80, 20, 2),
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_err_by_a_few_units_in_the_last_place(name):
    truth, low, high, stated = ELEMENTARY[name]
    near = np.geomspace(1e-6, 1, 1001)
    x = np.concatenate([np.linspace(low, high, 20_001), near, -near if low < 0 else near]).astype(np.float32)
    x, y = on_device(x), torch.full((len(x),), torch.nan, device=DEVICE)
    _elementary_kernel[(triton.cdiv(len(x), 4096),)](x, y, len(x), name, 4096)
    exact = truth(x.cpu().numpy().astype(float))
    error = np.abs(y.cpu().numpy() - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert error[exact != 0].max() <= stated
    special = on_device(np.array([np.nan, np.inf, -np.inf], np.float32))
    found = torch.zeros(3, device=DEVICE)
    _elementary_kernel[(1,)](special, found, 3, name, 16)
    assert found[0].isnan()
    if name != "log":
        ends = {"exp": (np.inf, 0), "tanh": (1, -1), "sigmoid": (1, 0), "softplus": (np.inf, 0)}[name]
        assert tuple(found[1:].tolist()) == ends
