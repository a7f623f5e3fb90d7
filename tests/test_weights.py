import math

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import reference

mpmath = pytest.importorskip("mpmath")

FLOATS = (np.float32, np.float64)
# one entry; under, at and over a group of 8; over a chunk; over a block; several blocks with a tail
SIZES = (1, 7, 8, 9, 1025, 16385, 50_001)


def poison(monkeypatch):
    """Fill what NumPy leaves uninitialised with NaN, or with -1 where there is none."""
    empty = np.empty

    def poisoned(shape, dtype=float, **kwargs):
        array = empty(shape, dtype, **kwargs)
        array.fill(np.nan if array.dtype.kind == "f" else -1)
        return array

    monkeypatch.setattr(np, "empty", poisoned)


def test_exp64_is_within_its_stated_error():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            -rng.uniform(0, 708, 200_000),
            -rng.uniform(0, 1, 200_000),
            -(10.0 ** -rng.uniform(0, 20, 1000)),
            [0.0],
        ]
    )
    assert np.finfo(np.longdouble).nmant >= 63, "the truth needs more bits than float64 has"
    truth = np.exp(x.astype(np.longdouble))
    y = reference.exp64(x)
    assert np.max(np.abs(y - truth) / np.spacing(truth.astype(np.float64))) < 1.1
    assert y[-1] == 1


def test_exp64_is_zero_below_its_range_and_never_subnormal():
    x = np.array([-708.0, np.nextafter(-708.0, -np.inf), -745.0, -1e308, -np.inf])
    y = reference.exp64(x)
    assert y[0] >= np.finfo(np.float64).tiny
    assert np.array_equal(y[1:], np.zeros(4))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_engines_equal_the_reference_to_the_bit(bitwise, size, dtype, monkeypatch):
    poison(monkeypatch)
    rng = np.random.default_rng(size)
    log_weights = (5 * rng.standard_normal((3, size))).astype(dtype)
    log_weights[1, :-1] *= 100
    log_weights[2, rng.random(size) < 0.3] = -np.inf
    log_weights[2, -1] = 0
    for row in (log_weights, *log_weights):  # a batch, and one row after the other
        result = fs.normalize_log_weights(row, backend=bitwise)
        truth = fs.normalize_log_weights(row, backend="reference")
        assert all(part.dtype == dtype for part in result)
        assert np.array_equal(result.weights, truth.weights)
        assert np.array_equal(result.ess, truth.ess)
        # the logarithm is the platform's own: one ulp
        assert np.all(np.abs(result.log_sum - truth.log_sum) <= np.spacing(np.abs(truth.log_sum)))


def test_exponentials_of_engines_equal_the_reference_to_the_bit(bitwise):
    x = -np.random.default_rng(1).uniform(0, 750, 20_000)
    rows = np.stack([np.zeros_like(x), x], axis=1)
    weights = fs.normalize_log_weights(rows, backend=bitwise).weights
    e = reference.exp64(x)
    assert np.array_equal(weights[:, 1], e * (1 / (1 + e)))


def hostile_log_weights(kind, n, rng):
    return {
        "ascending": lambda: np.linspace(-3000, 500, n),  # every block has a new largest
        "descending": lambda: np.linspace(500, -3000, n),
        "largest last": lambda: np.append(rng.standard_normal(n - 1), 800.0),
        "a block of -inf": lambda: np.where(np.arange(n) // 2048 == 1, -np.inf, rng.standard_normal(n)),
        "one finite": lambda: np.where(np.arange(n) == n - 1, -1e300, -np.inf),
        "float32 underflow": lambda: -rng.uniform(80, 110, n) * (rng.random(n) < 0.5),
        "around the cut": lambda: np.append(-rng.uniform(707, 709, n - 1), 0.0),
    }[kind]()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [9, 2047, 2048, 2049, 40_007])
@pytest.mark.parametrize(
    "kind",
    [
        "ascending",
        "descending",
        "largest last",
        "a block of -inf",
        "one finite",
        "float32 underflow",
        "around the cut",
    ],
)
def test_hostile_log_weights_equal_the_reference_to_the_bit(bitwise, kind, n, dtype):
    values = hostile_log_weights(kind, n, np.random.default_rng(n)).clip(np.finfo(np.float32).min).astype(dtype)
    values[np.isneginf(hostile_log_weights(kind, n, np.random.default_rng(n)))] = -np.inf
    ours, truth = (fs.normalize_log_weights(values, backend=b) for b in (bitwise, "reference"))
    assert np.array_equal(ours.weights, truth.weights)
    assert np.array_equal(ours.ess, truth.ess)
    assert abs(float(ours.weights.sum(dtype=np.float64)) - 1) < 1e-6
    assert not np.any((ours.weights > 0) & (ours.weights < np.finfo(dtype).tiny)), "a subnormal weight"
    exact = np.exp(values.astype(np.longdouble) - values.max())
    exact /= exact.sum()
    kept = exact > 10 * np.finfo(dtype).tiny
    assert np.all(np.abs(ours.weights - exact)[kept] <= 1000 * np.finfo(dtype).eps * exact[kept])


@pytest.mark.parametrize("spread", [1e-3, 1, 30, 1e4])
def test_against_mpmath(backend, spread):
    log_weights = spread * np.random.default_rng(2).standard_normal(300) + 7e3
    weights, log_sum, ess = fs.normalize_log_weights(log_weights, backend=backend)
    with mpmath.workdps(50):
        terms = [mpmath.exp(mpmath.mpf(v)) for v in log_weights]
        total = mpmath.fsum(terms)
        assert abs(log_sum - mpmath.log(total)) <= np.spacing(abs(log_sum))
        truth = np.array([float(t / total) for t in terms])
        true_ess = float(total**2 / mpmath.fsum(t * t for t in terms))
    assert ess == pytest.approx(true_ess, rel=1e-13)
    # the difference to the largest is rounded to 2^-53 of its size; what is below exp(-708) is zero
    bound = 4 * np.finfo(float).eps * (1 + np.abs(log_weights - log_weights.max())) * truth + 1e-307
    assert np.all(np.abs(weights - truth) <= bound)


@pytest.mark.parametrize("dtype", FLOATS)
def test_error_is_at_most_twice_that_of_torch(backend, dtype):
    torch = pytest.importorskip("torch")
    log_weights = (8 * np.random.default_rng(3).standard_normal(5000)).astype(dtype)
    exact = np.exp(log_weights.astype(np.longdouble) - log_weights.max())
    exact /= exact.sum()

    def error(weights):
        return float(np.max(np.abs(weights - exact) / exact))

    ours = error(fs.normalize_log_weights(log_weights, backend=backend).weights)
    assert ours <= 2 * error(torch.softmax(torch.from_numpy(log_weights), 0).numpy()) + np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FLOATS)
def test_effective_sample_size_extremes(backend, dtype):
    for n in (1, 2, 1000, 20_001):
        equal = fs.normalize_log_weights(np.full(n, -1234.5, dtype), backend=backend)
        assert equal.ess == n
        assert np.array_equal(equal.weights, np.full(n, 1 / n, dtype))
        one = np.full(n, -np.inf, dtype)
        one[n // 2] = -3
        single = fs.normalize_log_weights(one, backend=backend)
        assert (single.ess, single.log_sum) == (1, -3)
        assert np.array_equal(single.weights, np.isfinite(one).astype(dtype))


def test_extreme_log_weights(backend):
    huge = np.finfo(np.float64).max
    weights, log_sum, ess = fs.normalize_log_weights(np.array([-huge, huge, -np.inf]), backend=backend)
    assert np.array_equal(weights, [0, 1, 0])
    assert (log_sum, ess) == (huge, 1)
    lowest = fs.normalize_log_weights(np.array([-huge, -huge]), backend=backend)
    assert np.array_equal(lowest.weights, [0.5, 0.5])


def test_one_row_gives_scalars_and_a_batch_gives_arrays(backend):
    single = fs.normalize_log_weights(np.zeros(4), backend=backend)
    assert isinstance(single.log_sum, np.float64)
    assert single.log_sum == pytest.approx(math.log(4), abs=1e-15)
    batch = fs.normalize_log_weights(np.zeros((2, 3, 4), np.float32), backend=backend)
    assert batch.weights.shape == (2, 3, 4)
    assert np.array_equal(batch.ess, np.full((2, 3), 4, np.float32))


def test_inputs_stay_as_they_are(backend):
    log_weights = np.random.default_rng(4).standard_normal(100)
    log_weights.flags.writeable = False
    before = log_weights.copy()
    fs.normalize_log_weights(log_weights, backend=backend)
    assert np.array_equal(log_weights, before)
