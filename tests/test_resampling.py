import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import threads_change_no_bit
from processes import printed
from scipy.stats import chi2, norm

import fastsmc as fs
from fastsmc import backends, ops, reference

FALSE_ALARM = 1e-6
LAST = np.nextafter(1.0, 0.0)
FLOATS = (np.float32, np.float64)


def by_fractions(weights, u, samples):
    """Systematic resampling in rational numbers: the first i with C_i > (j + u) / M of the whole."""
    exact = [Fraction(w) for w in weights.tolist()]
    step, u = sum(exact) / samples, Fraction(float(u))
    ancestors, i, below = [], 0, exact[0]
    for j in range(samples):
        while below <= (j + u) * step:
            i += 1
            below += exact[i]
        ancestors.append(i)
    return np.array(ancestors)


def weights_of(kind, n, rng):
    weights = {
        "exponential": lambda: rng.standard_exponential(n),
        "ties": lambda: rng.integers(1, 4, n).astype(float),
        "zero ends": lambda: np.where((np.arange(n) < n // 3) | (np.arange(n) > n // 2), 0.0, rng.random(n)),
        "negative zeros": lambda: np.where(rng.random(n) < 0.5, -0.0, rng.random(n)),
        "one-hot": lambda: np.zeros(n),
        "skewed": lambda: np.exp(6 * rng.standard_normal(n)),
    }[kind]()
    if not weights.any():
        weights[rng.integers(n)] = 0.3
    return weights


KINDS = ("exponential", "ties", "zero ends", "negative zeros", "one-hot", "skewed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 127, 129, 600])
def test_systematic_equals_a_loop_over_rational_numbers(backend, kind, n):
    rng = np.random.default_rng(n)
    for dtype in FLOATS:
        weights = weights_of(kind, n, rng).astype(dtype)
        for samples in {1, max(1, n // 3), n, 2 * n + 1}:
            for u in (0.0, float(rng.random()), 0.5, LAST):
                ancestors = fs.systematic(weights, u, samples, backend=backend)
                assert ancestors.dtype == np.int64
                masses = reference.masses(np.abs(weights.astype(np.float64)))
                assert np.array_equal(ancestors, by_fractions(masses, u, samples))
                # a tooth on the very end of a weight, as some are for u = 0, is decided by rounding
                if 0 < u < LAST:
                    assert np.array_equal(ancestors, by_fractions(weights, u, samples))
                assert np.all(weights[ancestors] > 0)
                assert np.all(np.diff(ancestors) >= 0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 1023, 1024, 1025, 16384, 16385, 70_001])
@pytest.mark.parametrize("value", [1.0, 0.1, 5e-324, 1e-300, 1e300])
def test_equal_weights_are_the_identity(backend, n, value):
    weights = np.full(n, value)
    for u in (0.0, 0.3, LAST):
        assert np.array_equal(fs.systematic(weights, u, backend=backend), np.arange(n))
    assert np.array_equal(fs.stratified(weights, np.full(n, LAST), backend=backend), np.arange(n))
    assert np.array_equal(fs.residual(weights, np.zeros(n), backend=backend), np.arange(n))


def draw(scheme, rng, samples, lead=()):
    return rng.random((*lead, samples) if ops.SCHEMES[scheme] else lead)


@pytest.mark.parametrize("scheme", ops.SCHEMES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("log", [False, True])
def test_engines_equal_the_reference(engine, scheme, dtype, log):
    rng = np.random.default_rng(5)
    # one block; several blocks with tails; far fewer and far more samples than particles
    for n, samples in [(1, 1), (9, 9), (1000, 1000), (40_001, 40_001), (50_000, 11), (13, 60_000)]:
        for spread in (0.1, 5.0, 1e4 if log else 20.0):
            values = (spread * rng.standard_normal(n)).astype(dtype)
            values = values if log else np.exp(values)
            u = draw(scheme, rng, samples).astype(dtype)
            u = np.minimum(u, np.nextafter(dtype(1), dtype(0)))
            ours, truth = (fs.resample(values, u, scheme, log, samples, backend=b) for b in (engine, "reference"))
            assert np.array_equal(ours, truth)


def hostile_weights(kind, n, rng):
    """Weights whose scale the engine's sample of them does not tell, and extremes of the number format."""
    spikes = {"largest last": n - 1, "largest first": 0, "one dominates by 1e300": n // 2}
    if kind in spikes:
        weights = rng.random(n) * (1e-300 if "1e300" in kind else 1)
        weights[spikes[kind]] = 1.0 if "1e300" in kind else 1e12
        return weights
    return {
        "ascending": lambda: np.exp(np.linspace(-600, 600, n)),
        "subnormal": lambda: rng.integers(0, 1000, n) * 5e-324,
        "subnormal beside normal": lambda: np.where(rng.random(n) < 0.5, 3e-308, 1e-310) * rng.random(n),
        "huge": lambda: rng.random(n) * np.finfo(float).max,
        "powers of two": lambda: np.ldexp(1.0, rng.integers(-1074, 1023, n)),
        "sum at the limit": lambda: np.full(n, 3.0 / n),  # where one scale gives way to the next
        "just below": lambda: np.full(n, np.nextafter(3.0 / n, 0)),
        "nearly all zero": lambda: np.where(np.arange(n) == n - 2, 1e-200, 0.0),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "largest last",
        "largest first",
        "one dominates by 1e300",
        "ascending",
        "subnormal",
        "subnormal beside normal",
        "huge",
        "powers of two",
        "sum at the limit",
        "just below",
        "nearly all zero",
    ],
)
@pytest.mark.parametrize("n", [5, 512, 513, 2049, 40_007])
def test_hostile_weights_equal_the_reference(engine, kind, n):
    rng = np.random.default_rng(n)
    weights = hostile_weights(kind, n, rng)
    for scheme, own in ops.SCHEMES.items():
        for u in (rng.random(n), np.full(n, LAST), rng.random(n) ** 20):  # the last are far from uniform
            numbers = u if own else u[0]
            ours, truth = (fs.resample(weights, numbers, scheme, False, backend=b) for b in (engine, "reference"))
            assert np.array_equal(ours, truth)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    ours, truth = (fs.resample(log_weights, 0.25, backend=b) for b in (engine, "reference"))
    assert np.array_equal(ours, truth)


@pytest.mark.parametrize("scheme", ops.SCHEMES)
def test_a_batch_is_its_rows(backend, scheme):
    rng = np.random.default_rng(6)
    for n, lead in [
        (50, (4, 3)),
        (2000, (30,)),
        (35_000, (2,)),
    ]:  # sequential; rows in parallel; blocks in parallel
        weights = rng.standard_exponential((*lead, n)).astype(np.float32)
        u = draw(scheme, rng, n, lead)
        batch = fs.resample(weights, u, scheme, False, backend=backend)
        assert batch.shape == weights.shape
        for index in np.ndindex(lead):
            row = fs.resample(weights[index], u[index], scheme, False, backend=backend)
            assert np.array_equal(batch[index], row)


@pytest.mark.parametrize("scheme", ops.SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_structure(backend, scheme, kind):
    rng = np.random.default_rng(7)
    for n, samples in [(97, 97), (97, 300), (300, 97)]:
        weights = weights_of(kind, n, rng)
        for u in (
            draw(scheme, rng, samples),
            0 * draw(scheme, rng, samples),
            0 * draw(scheme, rng, samples) + LAST,
        ):
            ancestors = fs.resample(weights, u, scheme, False, samples, backend=backend)
            assert ancestors.shape == (samples,)
            assert np.all(np.diff(ancestors) >= 0)
            assert np.all(weights[ancestors] > 0)
            counts = fs.offspring(ancestors, n, backend=backend)
            assert np.array_equal(np.repeat(np.arange(n), counts), ancestors)  # the round trip
            expected = samples * weights / weights.sum()
            slack = 1e-9 * samples
            if scheme == "systematic":
                assert np.all((counts > expected - 1 - slack) & (counts < expected + 1 + slack))
            if scheme == "stratified":
                assert np.all(np.abs(counts - expected) < 2 + slack)
            if scheme == "residual":
                assert np.all(counts >= np.floor(expected - slack))


@pytest.mark.large
def test_ten_million_particles_from_float32_log_weights(engine):
    n = 10_000_000
    rng = np.random.default_rng(8)
    log_weights = (2 * rng.standard_normal(n, dtype=np.float32)).astype(np.float32)
    u = 0.7310585786300049
    ancestors = fs.resample(log_weights, u, backend=engine)

    # The exact integer loop, vectorised: masses from long doubles of 64 bits, then integers.
    weights = reference.exp64(log_weights.astype(np.float64) - log_weights.max())
    scale = int(np.floor(60 + np.log2(3 / weights.sum())))
    masses = np.floor(np.ldexp(weights.astype(np.longdouble), scale)).astype(np.uint64)
    total = int(masses.sum())
    below = np.cumsum(masses)
    offset = int(Fraction(u) * total)
    j = np.arange(n, dtype=np.uint64)
    positions = j * np.uint64(total // n) + (j * np.uint64(total % n) + np.uint64(offset)) // np.uint64(n)
    assert np.all(positions < below[ancestors])
    assert np.all(positions >= below[ancestors] - masses[ancestors])

    # A float64 loop accumulates ten million roundings; they move no tooth across an end here.
    plain = np.searchsorted(np.cumsum(weights), (j + u) * (weights.sum() / n), side="right")
    assert np.count_nonzero(plain != ancestors) == 0


@pytest.mark.large
def test_a_long_tail_keeps_its_share(backend):
    weights = np.full(5_000_001, 1e-12)
    weights[0] = 1
    for samples in (10**6, 3 * 10**6):
        tail = np.count_nonzero(fs.systematic(weights, 0.5, samples, backend=backend))
        assert tail == round(samples * 5e-6 / (1 + 5e-6))


@pytest.mark.parametrize("magnitude", [5e-324, 1e-300, 1.0, 1e300])
def test_extreme_magnitudes(backend, magnitude):
    weights = np.array([1.0, 0, 3, 4]) * magnitude
    assert np.array_equal(fs.systematic(weights, 0.5, 8, backend=backend), [0, 2, 2, 2, 3, 3, 3, 3])
    mixed = np.array([5e-324, 1e300, 1e-300, 1e300])
    assert np.array_equal(fs.systematic(mixed, 0.0, backend=backend), [1, 1, 3, 3])


def test_the_smallest_mass(backend):
    """Beside a weight of one the unit is 2^-61: what is less has no mass, and u = 0 draws whatever has one."""
    for tiny, first in [(2.0**-60, 0), (2.0**-61, 0), (np.nextafter(2.0**-61, 0), 1), (0.0, 1)]:
        assert fs.systematic([tiny, 1.0], 0.0, 1, backend=backend) == first
        assert fs.multinomial([tiny, 1.0], [0.0], backend=backend) == first
    # one draw shifts the remainders of residual resampling by one bit
    assert fs.residual([2.0**-60, 1.0], [0.0], backend=backend) == 0
    assert fs.residual([2.0**-61, 1.0], [0.0], backend=backend) == 1


def test_sums_beyond_float64(backend):
    weights = np.full(1000, np.finfo(np.float64).max)
    assert np.array_equal(fs.systematic(weights, 0.5, backend=backend), np.arange(1000))


def test_log_weights_with_a_spread_of_ten_thousand(backend):
    log_weights = np.array([-1e4, 0.0, -745.0, 5.0, -np.inf, 5.0])
    assert np.array_equal(fs.resample(log_weights, 0.5, num_samples=4, backend=backend), [3, 3, 5, 5])


def test_systematic_is_unbiased(backend):
    """The mean offspring over a grid of u is within one grid cell's error of M w, without any randomness."""
    rng = np.random.default_rng(9)
    weights = rng.standard_exponential(23)
    grid = (np.arange(4096) + 0.5) / 4096
    for samples in (7, 23, 50):
        batch = np.broadcast_to(weights, (4096, 23))
        counts = fs.offspring(fs.systematic(batch, grid, samples, backend=backend), 23, backend=backend)
        expected = samples * weights / weights.sum()
        # both ends of a particle's interval each err by at most half a cell
        assert np.abs(counts.mean(axis=0) - expected).max() <= 1 / 4096


@pytest.mark.statistics
@pytest.mark.parametrize("scheme", ["stratified", "multinomial", "residual"])
def test_schemes_are_unbiased(backend, scheme):
    """z of the mean offspring of each particle, Bonferroni over particles: false alarm 1e-6."""
    rng = np.random.default_rng(10)
    n, samples, repeats = 17, 40, 20_000
    weights = rng.standard_exponential(n)
    u = rng.random((repeats, samples))
    batch = np.broadcast_to(weights, (repeats, n))
    ancestors = fs.resample(batch, u, scheme, False, backend=backend)
    counts = fs.offspring(ancestors, n, backend=backend)
    expected = samples * weights / weights.sum()
    z = (counts.mean(axis=0) - expected) / (counts.std(axis=0) / np.sqrt(repeats) + 1e-12)
    assert np.abs(z).max() < norm.isf(FALSE_ALARM / (2 * n))


@pytest.mark.statistics
def test_multinomial_counts_pass_a_chi_squared_test(backend):
    rng = np.random.default_rng(11)
    weights = rng.standard_exponential(50)
    samples = 200_000
    counts = np.bincount(fs.multinomial(weights, rng.random(samples), backend=backend), minlength=50)
    expected = samples * weights / weights.sum()
    assert np.sum((counts - expected) ** 2 / expected) < chi2.isf(FALSE_ALARM, 49)


def test_multinomial_does_not_depend_on_the_order_of_its_numbers(backend):
    rng = np.random.default_rng(12)
    weights, u = rng.random(100), rng.random(1000)
    once, again = (fs.multinomial(weights, v, backend=backend) for v in (u, rng.permutation(u)))
    assert np.array_equal(once, again)
    direct = np.searchsorted(np.cumsum(weights) / weights.sum(), np.sort(u), side="right")
    assert np.array_equal(once, direct)


def test_residual_uses_only_the_numbers_it_needs(backend):
    weights = np.array([2.5, 1.0, 0.5])  # M = 4: two, one and no copies, one draw
    u = np.array([0.75, np.nan, np.nan, np.nan])
    u[1:] = 0.0
    assert np.array_equal(fs.residual(weights, u, backend=backend), [0, 0, 1, 2])
    assert np.array_equal(fs.residual(weights, u[::-1].copy(), backend=backend), [0, 0, 0, 1])


def permuted_by_rule(ancestors):
    """Survivors stay; dead slots take further children, both in ascending order."""
    counts = [list(ancestors).count(i) for i in range(len(ancestors))]
    surplus = iter([i for i, c in enumerate(counts) for _ in range(c - 1)])
    return [i if counts[i] else next(surplus) for i in range(len(ancestors))]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), n=st.integers(1, 40))
def test_permuted_ancestors(data, n):
    ancestors = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
    for name in present():
        permuted = fs.permute_ancestors(ancestors, backend=name)
        assert np.array_equal(np.sort(permuted), np.sort(ancestors))
        survivors = np.unique(ancestors)
        assert np.array_equal(permuted[survivors], survivors)
        assert np.array_equal(permuted, permuted_by_rule(ancestors))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    weights=st.lists(st.floats(0, 1e300, width=64), min_size=1, max_size=30).filter(any),
    u=st.floats(0, 1, exclude_max=True),
    samples=st.integers(1, 50),
)
def test_any_weights(weights, u, samples):
    weights = np.array(weights)
    names = present()
    truth = fs.systematic(weights, u, samples, backend=names[0])
    assert np.all(weights[truth] > 0)
    for name in names[1:]:
        assert np.array_equal(fs.systematic(weights, u, samples, backend=name), truth)


def present():
    return [name for name in backends.names() if backends.BACKENDS[name].available()[0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.float16, np.complex128, "S3", "f4,i2"])
def test_gathering(backend, dtype):
    rng = np.random.default_rng(13)
    for n, shape in [(1, ()), (5, (3,)), (300, (7, 5)), (2000, (40,))]:
        particles = rng.integers(0, 100, (n, *shape)).astype(dtype)
        ancestors = rng.integers(0, n, n)
        out = np.zeros_like(particles)
        assert fs.gather_particles(particles, ancestors, out, backend=backend) is out
        assert np.array_equal(out, particles[ancestors])
        longer = rng.integers(0, n, 2 * n + 1)
        gathered = fs.gather_particles(particles, longer, backend=backend)
        assert np.array_equal(gathered, particles[longer])


def test_gathering_in_place(backend):
    rng = np.random.default_rng(14)
    for n in (1, 10, 3000):
        particles, momentum = rng.random((n, 33)), rng.random(n).astype(np.float32)
        ancestors = fs.permute_ancestors(rng.integers(0, n, n), backend=backend)
        expected = particles[ancestors], momentum[ancestors]
        result = fs.gather_particles((particles, momentum), ancestors, (particles, momentum), backend=backend)
        assert result[0] is particles
        assert result[1] is momentum
        assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


def test_gathering_in_place_leaves_survivors_untouched(backend):
    """Rows of survivors are not written at all, seen by the bits of a signalling NaN."""
    particles = np.full((4, 2), 0x7FF0000000000001, np.uint64)
    particles[3] = 5
    fs.gather_particles(particles, np.array([0, 1, 2, 2]), particles, backend=backend)
    assert np.array_equal(particles, np.full((4, 2), 0x7FF0000000000001, np.uint64))


def test_schemes_are_the_engines(engine):
    assert backends.choose(engine).ops.schemes() == list(ops.SCHEMES)


def everything():
    rng = np.random.default_rng(15)
    for lead, n in (((), 1000), ((), 100_003), ((), 2**17), ((50,), 1111), ((2,), 40_000)):
        for dtype in FLOATS:
            log_weights = (3 * rng.standard_normal((*lead, n))).astype(dtype)
            yield from fs.normalize_log_weights(log_weights)
            for scheme, own in ops.SCHEMES.items():
                u = rng.random((*lead, n) if own else lead)
                for log in (True, False):
                    ancestors = fs.resample(log_weights if log else np.exp(log_weights), u, scheme, log)
                    yield ancestors
                yield from fs.adaptive_resample(log_weights, u, 0.2, scheme)
                yield from (fs.offspring(ancestors, n), fs.permute_ancestors(ancestors))


def digest():
    result = hashlib.sha256()
    for part in everything():
        result.update(np.ascontiguousarray(part))
    return result.hexdigest()


def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)


def test_every_instruction_set_gives_the_same_bits():
    cpu = backends.choose("cpu").ops
    script = "import test_resampling; print(test_resampling.digest())"
    assert len({printed(script, FASTSMC_SIMD=level) for level in cpu.simd_levels()}) == 1
