"""A whole resampling step is what its parts say: weights, the decision, ancestors in place, offspring."""

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import ops

FLOATS = (np.float32, np.float64)
INF = np.inf


def rows_of(lead, n, dtype, rng):
    """Log weights of which some rows are nearly equal and others far apart, with zeros among them."""
    spread = rng.choice([0.05, 6.0], size=(*lead, 1))
    log_weights = spread * rng.standard_normal((*lead, n)) - 1e3
    log_weights[..., 1:][rng.random((*lead, n - 1)) < 0.1] = -INF
    return log_weights.astype(dtype)


def numbers(scheme, lead, n, rng):
    return rng.random((*lead, n) if ops.SCHEMES[scheme] else lead)


def by_parts(log_weights, u, threshold, scheme, backend):
    """The same by a call of each op."""
    n = log_weights.shape[-1]
    _, log_sum, ess = fs.normalize_log_weights(log_weights, backend=backend)
    ancestors = fs.permute_ancestors(fs.resample(log_weights, u, scheme, backend=backend), backend=backend)
    kept = ~(np.asarray(ess, np.float64) < threshold * n)
    ancestors[kept] = np.arange(n)
    return kept, ancestors, fs.offspring(ancestors, n, backend=backend), log_sum, ess


@pytest.mark.parametrize("scheme", ops.SCHEMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_it_equals_its_parts(backend, scheme, dtype):
    rng = np.random.default_rng(0)
    # one particle; odd numbers; rows; more than a block of weights holds, and more than one program takes
    for lead, n in [((), 1), ((5,), 7), ((2, 3), 100), ((6,), 1000), ((3,), 2500), ((2,), 5000)]:
        log_weights, u = rows_of(lead, n, dtype, rng), numbers(scheme, lead, n, rng)
        for threshold in (0.0, 0.5, 1.0, INF):
            step = fs.adaptive_resample(log_weights, u, threshold, scheme, backend=backend)
            kept, ancestors, counts, log_sum, ess = by_parts(log_weights, u, threshold, scheme, backend)
            assert np.array_equal(step.ancestors, ancestors)
            assert np.array_equal(step.offspring, counts)
            assert np.array_equal(step.log_sum, log_sum)
            assert np.array_equal(step.ess, ess)
            exact = log_weights.astype(np.float64)
            exact = exact - exact.max(axis=-1, keepdims=True)
            exact = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
            exact = np.where(np.asarray(kept)[..., None], exact, -np.log(n))
            assert step.log_weights.dtype == dtype
            np.testing.assert_allclose(step.log_weights, exact, rtol=2 * np.finfo(dtype).eps, atol=1e-12)


def test_some_rows_are_resampled_and_others_are_not(backend):
    log_weights, u = np.log([[0.2, 0.3, 0.5], [0.01, 0.98, 0.01], [0.98, 0.02, 1e-9]]), np.full(3, 0.5)
    step = fs.adaptive_resample(log_weights, u, 0.5, backend=backend)
    assert step.ancestors.tolist() == [[0, 1, 2], [1, 1, 1], [0, 0, 0]]
    assert step.offspring.tolist() == [[1, 1, 1], [0, 3, 0], [3, 0, 0]]
    assert np.allclose(np.exp(step.log_weights), [[0.2, 0.3, 0.5], [1 / 3] * 3, [1 / 3] * 3])
    assert np.allclose(step.ess, [1 / 0.38, 1 / (0.98**2 + 2e-4), 1 / (0.98**2 + 0.02**2)])


@pytest.mark.parametrize(("threshold", "resampled"), [(0.0, False), (1.0, False), (1.0 + 1e-12, True), (INF, True)])
def test_the_threshold_itself_is_enough(backend, threshold, resampled):
    """Equal weights have an effective sample size of P, which is not below P."""
    step = fs.adaptive_resample(np.zeros(8), np.full(8, 0.9), threshold, "multinomial", backend=backend)
    assert step.ess == 8
    assert (step.offspring.max() > 1) == resampled


def test_particles_are_gathered_in_place(backend):
    rng = np.random.default_rng(1)
    log_weights, particles = 3 * rng.standard_normal(500), rng.standard_normal((500, 3))
    step = fs.adaptive_resample(log_weights, 0.3, backend=backend)
    expected = particles[fs.permute_ancestors(fs.resample(log_weights, 0.3, backend=backend), backend=backend)]
    fs.gather_particles(particles, step.ancestors, particles, backend=backend)
    assert np.array_equal(particles, expected)


def test_every_instruction_set_and_engine_takes_the_same_decision(bitwise):
    """Sums have the reference's order, so that a threshold at the effective sample size itself is decided alike."""
    rng = np.random.default_rng(2)
    log_weights = rng.standard_normal((200, 50))
    ess = fs.normalize_log_weights(log_weights, backend="reference").ess
    for threshold in (ess / 50, np.nextafter(ess / 50, 1)):
        for row, least in zip(log_weights, threshold, strict=True):
            ours, truth = (fs.adaptive_resample(row, 0.5, least, backend=b) for b in (bitwise, "reference"))
            assert np.array_equal(ours.ancestors, truth.ancestors)
            assert ours.ess == truth.ess
