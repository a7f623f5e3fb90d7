"""Weights, resampling and gathering in Triton: on a GPU, or under TRITON_INTERPRET=1 on tiny shapes."""

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import ops, reference
from fastsmc.backends import INTERPRETED

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)

import triton.language as tl  # noqa: E402

from fastsmc.kernels import fixed_scan, resample  # noqa: E402
from fastsmc.kernels.build import EXACT  # noqa: E402
from fastsmc.kernels.exponential import exp64  # noqa: E402
from fastsmc.kernels.gather import gather_particles  # noqa: E402
from fastsmc.kernels.offspring import offspring, permute_ancestors  # noqa: E402
from fastsmc.kernels.rows import FINE, Cut  # noqa: E402
from fastsmc.kernels.weights import normalize_log_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, on what invalid entries become

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = (np.float32, np.float64)
NAN, INF = np.nan, np.inf
LAST = np.nextafter(1.0, 0.0)

# One program for a row; parts of one tile each, and of several.
CUTS = {"alone": Cut(), "parts": Cut(alone=1, tile=16, parts=32), "tiles": Cut(alone=1, tile=16, parts=4)}
cuts = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())


def on_device(array):
    return torch.from_numpy(np.array(array)).to(DEVICE)


def code_of(status):
    """As the reference returns it."""
    assert status.shape == (1,)
    assert status.dtype == torch.int64
    value = status.item()
    return None if value == FINE else (value >> 48, value & (2**48 - 1))


def run(op, *arrays, outputs, **options):
    """Status and outputs, poisoned before."""
    poisoned = [np.full(shape, -1 if dtype == np.int64 else NAN, dtype) for shape, dtype in outputs]
    results = [on_device(array) for array in poisoned]
    arguments = [on_device(a) if isinstance(a, np.ndarray | np.generic) else a for a in arrays]
    return code_of(op(*arguments, *results, **options)), *(result.cpu().numpy() for result in results)


def normalize(log_weights, cut):
    lead, dtype = log_weights.shape[:-1], log_weights.dtype
    return run(
        normalize_log_weights, log_weights, outputs=[(log_weights.shape, dtype), (lead, dtype), (lead, dtype)], cut=cut
    )


def draw(scheme, log, weights, u, samples, cut):
    return run(
        resample.resample, scheme, log, weights, u, outputs=[((*weights.shape[:-1], samples), np.int64)], cut=cut
    )


@triton.jit
def exponentials(x, y, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y + index, exp64(tl.load(x + index)))


def test_exponential_equals_the_reference_to_the_bit():
    rng = np.random.default_rng(0)
    x = -np.concatenate([rng.uniform(0, 712, 3000), rng.uniform(0, 1, 1000), 10.0 ** -rng.uniform(0, 20, 88)])
    x = np.append(x, [0.0, -0.0, -708.0, np.nextafter(-708.0, -INF), -745.0, -1e308, -INF, NAN])
    y = on_device(np.full_like(x, NAN))
    exponentials[(1,)](on_device(x), y, BLOCK=len(x), **EXACT)
    assert np.array_equal(y.cpu().numpy(), reference.exp64(x), equal_nan=True)


@cuts
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 33), (200,)])  # one entry; a tail; rows; several tiles
def test_normalised_weights(shape, dtype, cut):
    rng = np.random.default_rng(shape[-1])
    log_weights = (8 * rng.standard_normal(shape)).astype(dtype)
    log_weights[..., :-1][rng.random((*shape[:-1], shape[-1] - 1)) < 0.3] = -INF
    status, weights, log_sum, ess = normalize(log_weights, cut)
    assert status is None
    exact = np.exp(log_weights.astype(np.longdouble) - log_weights.max(axis=-1, keepdims=True))
    total = exact.sum(axis=-1, keepdims=True)
    plain = torch.softmax(torch.from_numpy(log_weights), -1).numpy()
    allowed = 2 * np.abs(plain - exact / total).max() + np.finfo(dtype).eps * exact / total
    assert np.all(np.abs(weights - exact / total) <= allowed)
    close = {"rtol": 2 * np.finfo(dtype).eps, "atol": 2 * np.finfo(dtype).eps}
    assert np.allclose(log_sum, (np.log(total[..., 0]) + log_weights.max(axis=-1)).astype(float), **close)
    assert np.allclose(ess, (total[..., 0] ** 2 / (exact**2).sum(axis=-1)).astype(float), **close)
    again = normalize(log_weights, cut)
    assert all(np.array_equal(a, b) for a, b in zip(again[1:], (weights, log_sum, ess), strict=True))


@cuts
@pytest.mark.parametrize("dtype", FLOATS)
def test_extremes_of_log_weights(dtype, cut):
    huge = np.finfo(dtype).max
    for n in (1, 2, 40):
        _, weights, _, ess = normalize(np.full(n, -1234.5, dtype), cut)
        assert np.array_equal(weights, np.full(n, 1 / n, dtype))
        assert ess == n
        one = np.full(n, -INF, dtype)
        one[n // 2] = -3
        _, weights, log_sum, ess = normalize(one, cut)
        assert np.array_equal(weights, np.isfinite(one).astype(dtype))
        assert (log_sum, ess) == (-3, 1)
    status, weights, log_sum, ess = normalize(np.array([-huge, *[-INF] * 50, huge], dtype), cut)
    assert status is None
    assert np.array_equal(weights, [0] * 51 + [1])
    assert (log_sum, ess) == (huge, 1)
    steep = np.append(-np.random.default_rng(0).uniform(70, 800, 60), 0.0).astype(dtype)
    weights = normalize(steep, cut)[1]
    assert not np.any((weights > 0) & (weights < np.finfo(dtype).tiny)), "a subnormal weight"
    truth = np.exp(steep.astype(np.longdouble))
    truth[truth < np.finfo(dtype).tiny] = 0
    assert np.allclose(weights, truth.astype(dtype), rtol=100 * np.finfo(dtype).eps, atol=0)


@cuts
@pytest.mark.parametrize("scheme", ops.SCHEMES)
@pytest.mark.parametrize("log", [False, True])
def test_ancestors_are_those_of_the_reference_and_of_the_cpu(scheme, log, cut):
    rng = np.random.default_rng(1)
    # one of each; a tail; few of many and many of few; rows; more than one tile in each part
    shapes = [((), 1, 1), ((), 9, 9), ((), 70, 13), ((), 13, 70), ((2,), 33, 33), ((), 150, 150)]
    for k, (lead, n, samples) in enumerate(shapes):
        dtype = FLOATS[(k + log) % 2]
        values = (3 * rng.standard_normal((*lead, n))).astype(dtype)
        values = values if log else np.exp(values)
        u = np.asarray(rng.random((*lead, samples) if ops.SCHEMES[scheme] else lead)).astype(dtype)
        u = np.asarray(np.minimum(u, np.nextafter(dtype(1), dtype(0))))
        status, ancestors = draw(scheme, log, values, u, samples, cut)
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


@pytest.mark.parametrize("cut", [CUTS["alone"], CUTS["tiles"]], ids=["alone", "tiles"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_ancestors_of_hostile_weights(kind, cut):
    n = 90
    rng = np.random.default_rng(2)
    weights = hostile_weights(kind, n, rng)
    for scheme, own in ops.SCHEMES.items():
        for u in (np.zeros(n), np.full(n, LAST), rng.random(n) ** 20):  # the last are far from uniform
            numbers = u if own else u[0]
            truth = fs.resample(weights, numbers, scheme, False, backend="reference")
            assert np.array_equal(draw(scheme, False, weights, np.asarray(numbers), n, cut)[1], truth)


@cuts
def test_the_smallest_mass(cut):
    """Which weight just has a mass tells the scale: 2^-61 beside 1 and beside 3/4, 2^-62 just below 3/4."""
    below = np.nextafter(0.75, 0)
    for large, unit in [(1.0, 2.0**-61), (0.75, 2.0**-61), (below, 2.0**-62)]:
        for tiny, first in [(2 * unit, 0), (unit, 0), (np.nextafter(unit, 0), 1), (0.0, 1)]:
            assert draw("systematic", False, np.array([tiny, large]), np.zeros(()), 1, cut)[1] == first


def test_a_second_refinement_changes_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    weights, u = np.exp(6 * rng.standard_normal(100)), np.asarray(rng.random())
    monkeypatch.setattr(resample, "refinements", lambda n: 2)
    truth = fs.systematic(weights, u, backend="reference")
    assert np.array_equal(draw("systematic", False, weights, u, 100, CUTS["parts"])[1], truth)


@pytest.mark.parametrize("n", [1, 2, 3, 4096, 10**8, 2**28, 2**28 + 1, 2**30, 2**31 - 1])
def test_refinements_suffice(n):
    """The extremes of sums that n weights can have at the safe scale, in integers: f is the last scale or one below."""
    limit = 3 << 60
    safe = 61 - (n - 1).bit_length()  # of weights below 2^0
    for largest in (2**999, 2**1000 - 1):  # in units of 2^-1000
        for rest in (0, 2 ** (1000 - safe) - 1, largest):  # no mass, nearly one unit, all alike
            total = largest + (n - 1) * rest

            def mass(scale, largest=largest, rest=rest):
                return (largest << scale >> 1000) + (n - 1) * (rest << scale >> 1000)

            scale = safe
            for _ in range(fixed_scan.refinements(n)):
                scale = scale + 62 - (mass(scale) + n).bit_length()
            assert total > 0
            assert mass(scale - 1) < limit
            assert mass(scale + 1) >= limit
            assert mass(scale) < 2**63


@cuts
def test_offspring_and_permuted_ancestors(cut):
    rng = np.random.default_rng(4)
    for lead, n, samples in [((), 1, 1), ((2,), 33, 33), ((), 100, 17), ((), 5, 100), ((), 130, 130)]:
        ancestors = rng.integers(0, n, (*lead, samples)) // rng.integers(1, 4)
        status, counts = run(offspring, ancestors, outputs=[((*lead, n), np.int64)], cut=cut)
        assert status is None
        assert np.array_equal(counts, fs.offspring(ancestors, n, backend="reference"))
        if samples == n:
            status, permuted = run(permute_ancestors, ancestors, outputs=[(ancestors.shape, np.int64)], cut=cut)
            assert status is None
            assert np.array_equal(permuted, fs.permute_ancestors(ancestors, backend="reference"))


DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "bool", "complex128")


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathering(dtype):
    rng = np.random.default_rng(5)
    for n, shape in [(1, ()), (5, (3,)), (30, (7, 5)), (3, (2100,)), (4, (0,))]:  # words: one; odd; several tiles; none
        particles = torch.from_numpy(rng.integers(0, 100, (n, *shape))).to(getattr(torch, dtype)).to(DEVICE)
        ancestors = torch.from_numpy(rng.integers(0, n, 2 * n + 1)).to(DEVICE)
        out = torch.full_like(particles[:1], 77).repeat(2 * n + 1, *[1] * len(shape))
        assert code_of(gather_particles(particles, ancestors, out)) is None
        assert torch.equal(out, particles[ancestors])


def test_gathering_in_place_moves_only_what_changed():
    particles = torch.full((4, 5), 0x7FF0000000000001, device=DEVICE)  # the bits of a signalling NaN
    particles[2:] = torch.tensor([[5], [6]])
    pointer = particles.data_ptr()
    status = gather_particles(particles.view(torch.float64), on_device([0, 1, 2, 2]), particles.view(torch.float64))
    assert code_of(status) is None
    assert particles.data_ptr() == pointer
    assert particles[:, 0].tolist() == [0x7FF0000000000001, 0x7FF0000000000001, 5, 5]
    rng = np.random.default_rng(6)
    for n, width in [(1, 3), (40, 33), (3000, 1)]:
        before = rng.random((n, width)).astype(np.float32)
        ancestors = fs.permute_ancestors(rng.integers(0, n, n), backend="reference")
        state = on_device(before)
        assert code_of(gather_particles(state, on_device(ancestors), state)) is None
        assert np.array_equal(state.cpu().numpy(), before[ancestors])


def test_gathering_from_an_odd_address():
    """A view that is aligned to no word."""
    bytes_ = torch.arange(1 + 6 * 8, dtype=torch.int8, device=DEVICE)[1:].view(6, 8)
    out = torch.zeros(6, 8, dtype=torch.int8, device=DEVICE)
    ancestors = on_device([5, 0, 3, 3, 1, 2])
    assert code_of(gather_particles(bytes_, ancestors, out)) is None
    assert torch.equal(out, bytes_[ancestors])


def test_what_gathering_refuses():
    p = np.arange(8.0).reshape(4, 2)
    outside, chain = np.array([0, 4, -1, 0]), np.array([1, 2, 2, 3])
    for ancestors in (outside, chain, np.array([0, 1])):
        ours, truth = on_device(p), p.copy()
        rows = len(ancestors)
        status = code_of(gather_particles(ours, on_device(ancestors), ours[:rows]))
        assert status == reference.gather_particles(truth, ancestors, truth[:rows])
        out = np.zeros((rows, 2))
        ours = code_of(gather_particles(on_device(p), on_device(ancestors), on_device(out)))
        assert ours == reference.gather_particles(p, ancestors, out)
    ours, truth = on_device(p), p.copy()
    status = code_of(gather_particles(ours, on_device(np.array([0, 1])), ours[1:3]))
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
def test_the_status_of_bad_weights_and_numbers(scheme, cut):
    u = np.full((2, 3) if ops.SCHEMES[scheme] else 2, 0.5)
    for weights in BAD_WEIGHTS:
        truth = np.zeros((2, 3), np.int64)
        weights = np.array(weights)
        assert draw(scheme, False, weights, u, 3, cut)[0] == reference.resample(scheme, False, weights, u, truth)
    for number in (1.0, -0.1, NAN):
        numbers = u.copy()
        numbers.ravel()[-1] = number
        assert draw(scheme, False, np.ones((2, 3)), numbers, 3, cut)[0] == (5, u.size - 1)


@cuts
def test_the_status_of_bad_log_weights_and_ancestors(cut):
    for row in ([0.0, NAN, 1], [0.0, 1, INF], [-INF, -INF, -INF]):
        values = np.array([[0.0, 1, 2], row])
        outputs = np.zeros((2, 3)), np.zeros(2), np.zeros(2)
        truth = reference.normalize_log_weights(values, *outputs)
        assert normalize(values, cut)[0] == truth
        assert draw("systematic", True, values, np.zeros(2), 3, cut)[0] == truth
    for ancestors in (np.array([[0, 1, 2], [0, 3, 1]]), np.array([[0, -1, 2], [7, 0, 1]])):
        counts = np.zeros((2, 3), np.int64)
        truth = reference.offspring(ancestors, counts)
        assert run(offspring, ancestors, outputs=[((2, 3), np.int64)], cut=cut)[0] == truth
        assert run(permute_ancestors, ancestors, outputs=[((2, 3), np.int64)], cut=cut)[0] == truth
