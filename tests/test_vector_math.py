"""The errors that csrc/common/elementary.h states. The names say cpu, so that the tests run on every level."""

import math

import numpy as np
import pytest

cpu = pytest.importorskip("fastsmc._cpu")

EXP, LOG, TANH, SIGMOID, SOFTPLUS, CDF, SINE, COSINE = range(8)
FIRST, LAST = -87.33, 88.72  # exp is zero before and infinite after
TINY, LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max
INF, NAN = np.inf, np.nan


def evenly(low, high):
    return np.linspace(low, high, 1_000_003).astype(np.float32)


def every_magnitude(low, high):
    """Floats at even distances in their own order, so that every exponent has as many."""
    low, high = (int(np.float32(end).view(np.int32)) for end in (low, high))
    return np.arange(low, high + 1, max(1, (high - low) // 1_000_003), dtype=np.int32).view(np.float32)


def both_signs(x):
    return np.concatenate([-x, x])


def normal_cdf(z):
    return 0.5 * np.vectorize(math.erfc)(-z / math.sqrt(2))


def in_ulps(ours, truth):
    """Errors in units of the last place of the true value, which is a normal number."""
    assert np.all(np.abs(truth) >= TINY)
    return np.abs(ours - truth) / np.spacing(np.abs(truth).astype(np.float32))


STATED = {
    # name: (function, truth, arguments, ulp)
    "exp": (EXP, np.exp, [evenly(FIRST, LAST), evenly(-1, 1), both_signs(every_magnitude(TINY, 80))], 2),
    "log": (LOG, np.log, [every_magnitude(TINY, LARGEST), evenly(0.5, 2), evenly(0.99, 0.9999999)], 1),
    "tanh": (TANH, np.tanh, [evenly(-10, 10), both_signs(every_magnitude(2 * TINY, LARGEST))], 3),
    "sigmoid": (SIGMOID, lambda x: 1 / (1 + np.exp(-x)), [evenly(FIRST, 20), evenly(-3, 3)], 3),
    "softplus": (SOFTPLUS, lambda x: np.logaddexp(0, x), [evenly(FIRST, 20), evenly(-3, 3)], 2),
}


@pytest.mark.parametrize("name", STATED)
def test_cpu_errors_in_ulps_are_as_stated(name):
    function, truth, arguments, stated = STATED[name]
    for x in arguments:
        exact = truth(x.astype(np.float64))
        usable = np.abs(exact) >= TINY  # log 1 is zero: exactly
        ours = cpu.elementary(function, x)
        assert np.all(ours[~usable] == exact[~usable])
        assert in_ulps(ours[usable], exact[usable]).max() <= stated


@pytest.mark.parametrize(("function", "truth"), [(SINE, np.sin), (COSINE, np.cos)])
def test_cpu_sine_and_cosine_are_as_stated(function, truth):
    for x in (evenly(-0.5, 0.5), both_signs(every_magnitude(1e-9, 0.5)), evenly(0.2499, 0.2501)):
        exact = truth(2 * np.pi * x.astype(np.float64))
        assert np.abs(cpu.elementary(function, x) - exact).max() <= 1e-7


def test_cpu_normal_cdf_is_as_stated():
    for x in (evenly(-12.9, 9), evenly(-1, 1)):
        exact = normal_cdf(x.astype(np.float64))
        ours = cpu.elementary(CDF, x)
        assert np.abs(ours - exact).max() <= 2.2e-7
        lower = x < 0
        assert np.all(in_ulps(ours[lower], exact[lower]) <= 7 + x[lower].astype(float) ** 2 / 2)


# (function, argument, value), where the value is exact
EDGES = [
    (EXP, 0.0, 1.0), (EXP, -0.0, 1.0), (EXP, np.nextafter(np.float32(FIRST), -INF), 0.0), (EXP, -INF, 0.0),
    (EXP, np.nextafter(np.float32(LAST), INF), INF), (EXP, INF, INF), (EXP, NAN, NAN), (EXP, -LARGEST, 0.0),
    (LOG, 1.0, 0.0), (LOG, NAN, NAN), (LOG, -NAN, NAN),
    (TANH, 0.0, 0.0), (TANH, INF, 1.0), (TANH, -INF, -1.0), (TANH, LARGEST, 1.0), (TANH, NAN, NAN),
    (SIGMOID, 0.0, 0.5), (SIGMOID, INF, 1.0), (SIGMOID, -INF, 0.0), (SIGMOID, NAN, NAN), (SIGMOID, 40.0, 1.0),
    (SOFTPLUS, INF, INF), (SOFTPLUS, -INF, 0.0), (SOFTPLUS, NAN, NAN), (SOFTPLUS, LARGEST, LARGEST),
    (SOFTPLUS, -LARGEST, 0.0), (SOFTPLUS, 100.0, 100.0),
    (CDF, INF, 1.0), (CDF, -INF, 0.0), (CDF, NAN, NAN), (CDF, LARGEST, 1.0), (CDF, -LARGEST, 0.0), (CDF, 0.0, 0.5),
    (SINE, 0.0, 0.0), (SINE, 0.25, 1.0), (SINE, -0.25, -1.0), (SINE, 0.5, 0.0), (SINE, -0.5, 0.0),
    (COSINE, 0.0, 1.0), (COSINE, 0.25, 0.0), (COSINE, -0.25, 0.0), (COSINE, 0.5, -1.0), (COSINE, -0.5, -1.0),
]  # fmt: skip


@pytest.mark.parametrize(("function", "x", "value"), EDGES)
def test_cpu_edges_are_exact(function, x, value):
    for lanes in (1, 5, 16):  # whole vectors and parts of one
        ours = cpu.elementary(function, np.full(lanes, x, np.float32))
        assert np.array_equal(ours, np.full(lanes, value, np.float32), equal_nan=True)


@pytest.mark.parametrize("function", range(8))
def test_cpu_lanes_are_independent(function):
    """A value does not depend on its place, nor on a NaN beside it."""
    x = np.linspace(0.01, 0.5, 67).astype(np.float32)
    whole = cpu.elementary(function, x)
    assert np.array_equal([cpu.elementary(function, x[i : i + 1])[0] for i in range(67)], whole)
    x[::2] = np.nan
    assert np.array_equal(cpu.elementary(function, x)[1::2], whole[1::2])


def test_cpu_sigmoid_and_softplus_are_zero_where_exp_is():
    x = np.float32([-87.4, -100, -1e30])
    assert not cpu.elementary(SOFTPLUS, x).any()
    assert np.all(cpu.elementary(SIGMOID, x) < 2 * TINY)
