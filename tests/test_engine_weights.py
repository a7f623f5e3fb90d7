"""Weights, resampling and gathering in the engines of devices, where rows are cut as the tests choose.

Triton's run on a GPU, or under TRITON_INTERPRET=1 on tiny shapes; those of CUDA C++ on a GPU, or as their host twins.
"""

import math

import numpy as np
import pytest
import torch
from problems import fewer_interpreted

import fastsmc as fs
from fastsmc import backends, ops, reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, on what invalid entries become

FLOATS = (np.float32, np.float64)
NAN, INF = np.nan, np.inf
LAST = np.nextafter(1.0, 0.0)
CUTS = ("alone", "parts", "tiles")


def code_of(status):
    """As the reference returns it."""
    assert status.shape == (1,)
    assert status.dtype == torch.int64
    value = status.item()
    return None if value == backends.FINE else (value >> 48, value & (2**48 - 1))


class Kernels:
    """The functions of an engine, how they may cut rows, and what is a long row to them."""

    def __init__(self, name):
        self.device = backends.BACKENDS[name].device
        if name == "triton":
            from fastsmc.kernels import engine
            from fastsmc.kernels.rows import Cut

            # one program for a row, tile by tile; parts of one tile each, and of several
            cuts = Cut(tile=64), Cut(alone=1, tile=16, parts=32), Cut(alone=1, tile=16, parts=4)
            self.long = dict.fromkeys(CUTS, 75)
        else:
            from fastsmc import cuda as engine
            from fastsmc.cuda import Cut

            cuts = Cut(), Cut(alone=0), Cut(alone=0, parts=2)
            self.long = dict(zip(CUTS, (4000, 9000, 9000), strict=True))
        self.engine, self.cuts = engine, dict(zip(CUTS, cuts, strict=True))

    def on_device(self, array):
        return torch.from_numpy(np.array(array)).to(self.device)

    def run(self, name, *arrays, outputs, **options):
        """Status and outputs, poisoned before."""
        poisoned = [np.full(shape, -1 if dtype == np.int64 else NAN, dtype) for shape, dtype in outputs]
        results = [self.on_device(array) for array in poisoned]
        arguments = [self.on_device(a) if isinstance(a, np.ndarray | np.generic) else a for a in arrays]
        status = getattr(self.engine, name)(*arguments, *results, **options)
        return code_of(status), *(result.cpu().numpy() for result in results)

    def normalize(self, log_weights, cut):
        lead, dtype = log_weights.shape[:-1], log_weights.dtype
        outputs = [(log_weights.shape, dtype), (lead, dtype), (lead, dtype)]
        return self.run("normalize_log_weights", log_weights, outputs=outputs, cut=self.cuts[cut])

    def draw(self, scheme, log, weights, u, samples, cut):
        outputs = [((*weights.shape[:-1], samples), np.int64)]
        return self.run("resample", scheme, log, weights, u, outputs=outputs, cut=self.cuts[cut])

    def count(self, ancestors, n, cut):
        return self.run("offspring", ancestors, outputs=[((*ancestors.shape[:-1], n), np.int64)], cut=self.cuts[cut])

    def permute(self, ancestors, cut):
        return self.run("permute_ancestors", ancestors, outputs=[(ancestors.shape, np.int64)], cut=self.cuts[cut])

    def adapt(self, scheme, threshold, log_weights, u, cut):
        shape, lead, dtype = log_weights.shape, log_weights.shape[:-1], log_weights.dtype
        outputs = [(shape, np.int64), (shape, np.int64), (shape, dtype), (lead, dtype), (lead, dtype)]
        return self.run("adaptive_resample", scheme, threshold, log_weights, u, outputs=outputs, cut=self.cuts[cut])

    def gather(self, *arrays):
        return code_of(self.engine.gather_particles(*arrays))


@pytest.fixture(params=["triton", "cuda"])
def kernels(request, unmirrored, present):
    return Kernels(present(request.param))


cuts = pytest.mark.parametrize("cut", CUTS)


@cuts
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 33), "long"])  # one entry; a tail; rows; several tiles
def test_normalised_weights(kernels, shape, dtype, cut):
    shape = (kernels.long[cut],) if shape == "long" else shape
    rng = np.random.default_rng(shape[-1])
    log_weights = (8 * rng.standard_normal(shape)).astype(dtype)
    log_weights[..., :-1][rng.random((*shape[:-1], shape[-1] - 1)) < 0.3] = -INF
    status, weights, log_sum, ess = kernels.normalize(log_weights, cut)
    assert status is None
    exact = np.exp(log_weights.astype(np.longdouble) - log_weights.max(axis=-1, keepdims=True))
    total = exact.sum(axis=-1, keepdims=True)
    plain = torch.softmax(torch.from_numpy(log_weights), -1).numpy()
    lost = shape[-1] * 2.0**-53 + np.finfo(dtype).eps  # a sum of n numbers of one sign loses at most n roundings
    allowed = 2 * np.abs(plain - exact / total).max() + lost * exact / total
    assert np.all(np.abs(weights - exact / total) <= allowed)
    close = {"rtol": 2 * lost, "atol": 2 * lost}
    assert np.allclose(log_sum, (np.log(total[..., 0]) + log_weights.max(axis=-1)).astype(float), **close)
    assert np.allclose(ess, (total[..., 0] ** 2 / (exact**2).sum(axis=-1)).astype(float), **close)
    again = kernels.normalize(log_weights, cut)
    assert all(np.array_equal(a, b) for a, b in zip(again[1:], (weights, log_sum, ess), strict=True))


@cuts
@pytest.mark.parametrize("dtype", FLOATS)
def test_extremes_of_log_weights(kernels, dtype, cut):
    huge = np.finfo(dtype).max
    for n in (1, 2, 40):
        _, weights, _, ess = kernels.normalize(np.full(n, -1234.5, dtype), cut)
        assert np.array_equal(weights, np.full(n, 1 / n, dtype))
        assert ess == n
        one = np.full(n, -INF, dtype)
        one[n // 2] = -3
        _, weights, log_sum, ess = kernels.normalize(one, cut)
        assert np.array_equal(weights, np.isfinite(one).astype(dtype))
        assert (log_sum, ess) == (-3, 1)
    status, weights, log_sum, ess = kernels.normalize(np.array([-huge, *[-INF] * 50, huge], dtype), cut)
    assert status is None
    assert np.array_equal(weights, [0] * 51 + [1])
    assert (log_sum, ess) == (huge, 1)
    steep = np.append(-np.random.default_rng(0).uniform(70, 800, 60), 0.0).astype(dtype)
    weights = kernels.normalize(steep, cut)[1]
    assert not np.any((weights > 0) & (weights < np.finfo(dtype).tiny)), "a subnormal weight"
    truth = np.exp(steep.astype(np.longdouble))
    truth[truth < np.finfo(dtype).tiny] = 0
    assert np.allclose(weights, truth.astype(dtype), rtol=100 * np.finfo(dtype).eps, atol=0)


@cuts
@fewer_interpreted(
    ["scheme", "log"], ops.SCHEMES, [False, True], kept=lambda scheme, log: log or scheme == "systematic"
)
def test_ancestors_are_those_of_the_reference_and_of_the_cpu(kernels, scheme, log, cut):
    rng = np.random.default_rng(1)
    # one of each; a tail; few of many and many of few; rows; more than one tile in each part
    long = kernels.long[cut]
    shapes = [((), 1, 1), ((), 9, 9), ((), 70, 13), ((), 13, 70), ((2,), 33, 33), ((), long, long), ((2,), 70, long)]
    for k, (lead, n, samples) in enumerate(shapes):
        dtype = FLOATS[(k + log) % 2]
        values = (3 * rng.standard_normal((*lead, n))).astype(dtype)
        values = values if log else np.exp(values)
        u = np.asarray(rng.random((*lead, samples) if ops.SCHEMES[scheme] else lead)).astype(dtype)
        u = np.asarray(np.minimum(u, np.nextafter(dtype(1), dtype(0))))
        status, ancestors = kernels.draw(scheme, log, values, u, samples, cut)
        assert status is None
        for backend in ("reference", "cpu"):
            assert np.array_equal(ancestors, fs.resample(values, u, scheme, log, samples, backend=backend))


def hostile_weights(kind, n, rng):
    return {
        "largest last": lambda: np.append(rng.random(n - 1), 1e12),
        "one dominates": lambda: np.where(np.arange(n) == n // 2, 1.0, 1e-300 * rng.random(n)),
        "ascending": lambda: np.exp(np.linspace(-600, 600, n)),
        "subnormal": lambda: rng.integers(0, 1000, n) * 5e-324,
        "smallest": lambda: np.full(n, 5e-324),
        "subnormal beside normal": lambda: np.where(rng.random(n) < 0.5, 3e-308, 1e-310) * rng.random(n),
        "huge": lambda: rng.random(n) * np.finfo(float).max,
        "powers of two": lambda: np.ldexp(1.0, rng.integers(-1074, 1023, n)),
        "sum at the limit": lambda: np.full(n, 3.0 / n),  # where one scale gives way to the next
        "just below": lambda: np.full(n, np.nextafter(3.0 / n, 0)),
        "negative zeros": lambda: np.where(np.arange(n) == n - 2, 1e-200, -0.0),
        "ties": lambda: rng.integers(1, 4, n).astype(float),
    }[kind]()


HOSTILE = (
    "largest last",
    "one dominates",
    "ascending",
    "subnormal",
    "smallest",
    "subnormal beside normal",
    "huge",
    "powers of two",
    "sum at the limit",
    "just below",
    "negative zeros",
    "ties",
)


@fewer_interpreted(
    ["kind", "cut"],
    HOSTILE,
    ["alone", "tiles"],
    kept=lambda kind, cut: (cut == "tiles") == HOSTILE.index(kind) % 2,
)
def test_ancestors_of_hostile_weights(kernels, kind, cut):
    n = kernels.long[cut]
    rng = np.random.default_rng(2)
    weights = hostile_weights(kind, n, rng)
    for scheme, own in ops.SCHEMES.items():
        for u in (np.zeros(n), np.full(n, LAST), rng.random(n) ** 20):  # the last are far from uniform
            numbers = u if own else u[0]
            truth = fs.resample(weights, numbers, scheme, False, backend="reference")
            assert np.array_equal(kernels.draw(scheme, False, weights, np.asarray(numbers), n, cut)[1], truth)


@cuts
def test_the_smallest_mass(kernels, cut):
    """Which weight just has a mass tells the scale: 2^-61 beside 1 and beside 3/4, 2^-62 just below 3/4."""
    below = np.nextafter(0.75, 0)
    for large, unit in [(1.0, 2.0**-61), (0.75, 2.0**-61), (below, 2.0**-62)]:
        for tiny, first in [(2 * unit, 0), (unit, 0), (np.nextafter(unit, 0), 1), (0.0, 1)]:
            assert kernels.draw("systematic", False, np.array([tiny, large]), np.zeros(()), 1, cut)[1] == first


@cuts
def test_offspring_and_permuted_ancestors(kernels, cut):
    rng = np.random.default_rng(4)
    long = kernels.long[cut]
    for lead, n, samples in [((), 1, 1), ((2,), 33, 33), ((), long, 17), ((), 5, long), ((), long, long)]:
        ancestors = rng.integers(0, n, (*lead, samples)) // rng.integers(1, 4)
        status, counts = kernels.count(ancestors, n, cut)
        assert status is None
        assert np.array_equal(counts, fs.offspring(ancestors, n, backend="reference"))
        if samples == n:
            status, permuted = kernels.permute(ancestors, cut)
            assert status is None
            assert np.array_equal(permuted, fs.permute_ancestors(ancestors, backend="reference"))


@fewer_interpreted(
    ["scheme", "cut"],
    ops.SCHEMES,
    CUTS,
    kept=lambda scheme, cut: (list(ops.SCHEMES).index(scheme) + CUTS.index(cut)) % 2 == 0,
)
def test_a_whole_resampling_step(kernels, scheme, cut):
    rng = np.random.default_rng(8)
    for k, (lead, n) in enumerate([((), 1), ((), 9), ((2,), 33), ((2,), kernels.long[cut])]):
        spread = np.array([6.0, 0.05][: math.prod(lead)]).reshape(*lead, 1)
        log_weights = (spread * rng.standard_normal((*lead, n)) + 1e3).astype(FLOATS[k % 2])
        log_weights[..., 1::9] = -INF
        u = np.asarray(rng.random((*lead, n) if ops.SCHEMES[scheme] else lead))
        for threshold in (0.5, INF):
            status, *step = kernels.adapt(scheme, threshold, log_weights, u, cut)
            assert status is None
            truth = fs.adaptive_resample(log_weights, u, threshold, scheme, backend="reference")
            for ours, exact in zip(step[:2], truth[:2], strict=True):
                assert np.array_equal(ours, exact)
            for ours, exact in zip(step[2:], truth[2:], strict=True):
                np.testing.assert_allclose(ours, exact, rtol=n * np.finfo(log_weights.dtype).eps)


@cuts
@fewer_interpreted(
    ["threshold", "scheme"],
    [0.0, INF],
    ops.SCHEMES,
    kept=lambda threshold, scheme: threshold == INF or scheme == "systematic",
)
def test_the_status_of_a_bad_step(kernels, scheme, threshold, cut):
    u, good = np.full((2, 3) if ops.SCHEMES[scheme] else 2, 0.5), np.array([[0.0, 1, 2], [0, 0, 0]])
    for row in ([0.0, NAN, 1], [0.0, 1, INF], [-INF, -INF, -INF]):
        values = np.array([good[0], row])
        outputs = np.zeros((2, 3)), np.zeros(2), np.zeros(2)
        assert kernels.adapt(scheme, threshold, values, u, cut)[0] == reference.normalize_log_weights(values, *outputs)
    u.ravel()[-1] = 1.0
    assert kernels.adapt(scheme, threshold, good, u, cut)[0] == (5, u.size - 1)


DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "bool", "complex128")


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathering(kernels, dtype):
    rng = np.random.default_rng(5)
    for n, shape in [(1, ()), (5, (3,)), (30, (7, 5)), (3, (2100,)), (4, (0,))]:  # words: one; odd; several tiles; none
        particles = torch.from_numpy(rng.integers(0, 100, (n, *shape))).to(getattr(torch, dtype)).to(kernels.device)
        ancestors = torch.from_numpy(rng.integers(0, n, 2 * n + 1)).to(kernels.device)
        out = torch.full_like(particles[:1], 77).repeat(2 * n + 1, *[1] * len(shape))
        assert kernels.gather(particles, ancestors, out) is None
        assert torch.equal(out, particles[ancestors])


def test_gathering_in_place_moves_only_what_changed(kernels):
    particles = torch.full((4, 5), 0x7FF0000000000001, device=kernels.device)  # the bits of a signalling NaN
    particles[2:] = torch.tensor([[5], [6]])
    pointer = particles.data_ptr()
    floats = particles.view(torch.float64)
    assert kernels.gather(floats, kernels.on_device([0, 1, 2, 2]), floats) is None
    assert particles.data_ptr() == pointer
    assert particles[:, 0].tolist() == [0x7FF0000000000001, 0x7FF0000000000001, 5, 5]
    rng = np.random.default_rng(6)
    for n, width in [(1, 3), (40, 33), (3000, 1)]:
        before = rng.random((n, width)).astype(np.float32)
        ancestors = fs.permute_ancestors(rng.integers(0, n, n), backend="reference")
        state = kernels.on_device(before)
        assert kernels.gather(state, kernels.on_device(ancestors), state) is None
        assert np.array_equal(state.cpu().numpy(), before[ancestors])


def test_gathering_from_an_odd_address(kernels):
    """A view that is aligned to no word."""
    bytes_ = torch.arange(1 + 6 * 8, dtype=torch.int8, device=kernels.device)[1:].view(6, 8)
    out = torch.zeros(6, 8, dtype=torch.int8, device=kernels.device)
    ancestors = kernels.on_device([5, 0, 3, 3, 1, 2])
    assert kernels.gather(bytes_, ancestors, out) is None
    assert torch.equal(out, bytes_[ancestors])


def test_what_gathering_refuses(kernels):
    p = np.arange(8.0).reshape(4, 2)
    outside, chain = np.array([0, 4, -1, 0]), np.array([1, 2, 2, 3])
    for ancestors in (outside, chain, np.array([0, 1])):
        ours, truth = kernels.on_device(p), p.copy()
        rows = len(ancestors)
        status = kernels.gather(ours, kernels.on_device(ancestors), ours[:rows])
        assert status == reference.gather_particles(truth, ancestors, truth[:rows])
        out = np.zeros((rows, 2))
        ours = kernels.gather(kernels.on_device(p), kernels.on_device(ancestors), kernels.on_device(out))
        assert ours == reference.gather_particles(p, ancestors, out)
    ours, truth = kernels.on_device(p), p.copy()
    status = kernels.gather(ours, kernels.on_device(np.array([0, 1])), ours[1:3])
    assert status == reference.gather_particles(truth, np.array([0, 1]), truth[1:3]) == (9, 0)
    assert np.array_equal(ours.cpu().numpy(), p)


BAD_WEIGHTS = (
    [[1.0, 2, 3], [NAN, 1, -1]],
    [[1.0, -1, INF], [0, 0, 0]],
    [[1.0, 2, 0], [0, -0.0, 0]],
    [[0.0, 0, 0], [0, 1, INF]],
)


@cuts
@pytest.mark.parametrize("scheme", ops.SCHEMES)
def test_the_status_of_bad_weights_and_numbers(kernels, scheme, cut):
    u = np.full((2, 3) if ops.SCHEMES[scheme] else 2, 0.5)
    for weights in BAD_WEIGHTS:
        truth = np.zeros((2, 3), np.int64)
        weights = np.array(weights)
        expected = reference.resample(scheme, False, weights, u, truth)
        assert kernels.draw(scheme, False, weights, u, 3, cut)[0] == expected
    for number in (1.0, -0.1, NAN):
        numbers = u.copy()
        numbers.ravel()[-1] = number
        assert kernels.draw(scheme, False, np.ones((2, 3)), numbers, 3, cut)[0] == (5, u.size - 1)


@cuts
def test_the_status_of_bad_log_weights_and_ancestors(kernels, cut):
    for row in ([0.0, NAN, 1], [0.0, 1, INF], [-INF, -INF, -INF]):
        values = np.array([[0.0, 1, 2], row])
        outputs = np.zeros((2, 3)), np.zeros(2), np.zeros(2)
        truth = reference.normalize_log_weights(values, *outputs)
        assert kernels.normalize(values, cut)[0] == truth
        assert kernels.draw("systematic", True, values, np.zeros(2), 3, cut)[0] == truth
    for ancestors in (np.array([[0, 1, 2], [0, 3, 1]]), np.array([[0, -1, 2], [7, 0, 1]])):
        counts = np.zeros((2, 3), np.int64)
        truth = reference.offspring(ancestors, counts)
        assert kernels.count(ancestors, 3, cut)[0] == truth
        assert kernels.permute(ancestors, cut)[0] == truth
