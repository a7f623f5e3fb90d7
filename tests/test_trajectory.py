"""A trajectory is its steps, to the bit, however the batch is cut and whoever shares the work."""

from itertools import product

import numpy as np
import pytest
from problems import threads_change_no_bit

import fastsmc as fs
from fastsmc import ops

NAMES = {"seed": 7, "iteration": 3, "stream": 2, "first_slot": 4}
# widths, particles, samples: one chunk, several chunks, fewer particles than threads
CASES = {
    "one chunk": ((24, 67, 3), 5, 300),
    "one particle of many groups": ((24, 67, 3), 1, 4000),
    "several chunks": ((900, 3), 3, 4500),
}


def problem(case, kind="categorical"):
    widths, particles, samples = CASES[case]
    rng = np.random.default_rng(1)
    post = fs.Posterior(fs.MLP(widths, "tanh"), prior=fs.Normal("fan_in"), likelihood=kind)
    theta = post.sample_prior(particles)
    x = rng.standard_normal((samples, widths[0]), np.float32)
    whole = kind in ("categorical", "poisson")
    y = rng.integers(0, widths[-1], samples) if whole else rng.random((samples, widths[-1]), np.float32)
    y = np.stack([y, y[::-1], 2 * y], axis=1) if kind == "poisson" else y
    return post, theta, rng.standard_normal(theta.shape, np.float32), x, y


def weights_of(y):
    return np.random.default_rng(2).uniform(0, 2, len(y)).astype(np.float32)


def scale_of(theta):
    return np.random.default_rng(3).uniform(0.3, 1.5, theta.shape[1]).astype(np.float32)


def by_steps(post, theta, v, x, y, step, steps, power, refresh, weights=None, scale=None):
    common = {"precision": post.prior_precision, "scale": scale, "likelihood_scale": power, "backend": post.backend}
    grad = post.log_likelihood_and_grad(theta, x, y, weights=weights).grad
    start = ops.leapfrog(theta, v, grad, kick=step / 2, drift=step, refresh=refresh, **NAMES, **common)
    for k in range(1, steps + 1):
        value, grad = post.log_likelihood_and_grad(theta, x, y, weights=weights)
        kick, drift = (step, step) if k < steps else (step / 2, 0.0)
        end = ops.leapfrog(theta, v, grad, kick=kick, drift=drift, **common)
    return theta, v, grad, value, start.kinetic_before, end.kinetic_after, end.prior_energy


def in_one(post, theta, v, x, y, step, steps, power, refresh, weights=None, scale=None):
    grad = post.log_likelihood_and_grad(theta, x, y, weights=weights).grad
    plan = {"step_size": step, "num_steps": steps, "likelihood_scale": power, "refresh": refresh, **NAMES}
    return theta, v, grad, *post.trajectory(theta, v, grad, x, y, weights=weights, scale=scale, **plan)


PLANS = (  # of steps, refreshment, weights and scale: every combination where they are cheap, a few elsewhere
    *product(["one chunk"], [1, 2, 5], [None, 0.0, 0.6], [False, True], [False, True]),
    *(
        (case, *plan)
        for case in list(CASES)[1:]
        for plan in ((1, None, False, False), (2, 0.6, True, True), (5, 0.0, False, True))
    ),
)


@pytest.mark.parametrize(("case", "steps", "refresh", "weighted", "scaled"), PLANS)
def test_it_is_its_steps(backend, case, steps, refresh, weighted, scaled):
    post, theta, v, x, y = problem(case)
    post = post.on(backend)
    plan = (x, y, 0.01, steps, 1.7, refresh, weights_of(y) if weighted else None, scale_of(theta) if scaled else None)
    apart, together = (run(post, theta.copy(), v.copy(), *plan) for run in (by_steps, in_one))
    for expected, found in zip(apart, together, strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian", "poisson"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_it_goes_where_float64_goes(engine, kind, weighted, scaled):
    post, theta, v, x, y = problem("one chunk", kind)
    plan = (x, y, 0.005, 4, 1.0, 0.3, weights_of(y) if weighted else None, scale_of(theta) if scaled else None)
    found = in_one(post.on(engine), theta.copy(), v.copy(), *plan)
    exact = in_one(post.on("reference"), theta.astype(float), v.astype(float), *plan)
    for ours, truth in zip(found, exact, strict=True):
        assert np.linalg.norm(ours - truth) <= 1e-5 * np.linalg.norm(truth)  # 4 steps of 1e-7, in a curved landscape


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian", "poisson"])
def test_its_log_likelihood_has_the_constants_of_the_density(backend, kind):
    post, theta, v, x, y = problem("one chunk", kind)
    plan = (x, y, 0.005, 2, 1.0, 0.3, weights_of(y))
    apart, together = (run(post.on(backend), theta.copy(), v.copy(), *plan) for run in (by_steps, in_one))
    np.testing.assert_allclose(together[3], apart[3], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_scale_of_ones_changes_no_bit(backend, case):
    post, theta, v, x, y = problem(case)
    plan = (x, y, 0.01, 2, 1.7, 0.6, None)
    plain, scaled = (
        in_one(post.on(backend), theta.copy(), v.copy(), *plan, scale) for scale in (None, np.ones_like(theta[0]))
    )
    assert all(map(np.array_equal, plain, scaled))


@pytest.mark.parametrize("scaled", [False, True])
def test_time_reversal_leads_back(backend, scaled):
    post, theta, v, x, y = problem("one chunk")
    plan = (x, y, 0.004, 6, 1.0, None, None, scale_of(theta) if scaled else None)
    there = in_one(post.on(backend), theta.copy(), v.copy(), *plan)
    back = in_one(post.on(backend), there[0], -there[1], *plan)
    assert np.linalg.norm(back[0] - theta) < 1e-5 * np.linalg.norm(theta)
    assert np.linalg.norm(back[1] + v) < 1e-5 * np.linalg.norm(v)


@pytest.mark.parametrize("backend", ["reference", "cpu"])  # on a device nobody waits for the labels
def test_a_bad_label_leaves_the_state_alone(backend):
    post, theta, v, x, y = problem("one chunk")
    post, y = post.on(backend), y.copy()
    y[17] = 3
    before, grad = theta.copy(), np.ones_like(theta)
    with pytest.raises(ValueError, match=r"y\[17\] is 3; labels must lie in \[0, 3\)"):
        post.trajectory(theta, v, grad, x, y, step_size=0.1, num_steps=2)
    assert np.array_equal(theta, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": [1.0] * 299 + [-1.0]}, r"weights\[299\] is -1.0; weights must be non-negative and finite"),
        ({"scale": np.zeros(1879, np.float32)}, r"scale\[0\] is 0.0; scale must be positive and finite"),
        ({"scale": np.ones(3, np.float32)}, r"scale has shape \(3,\), particles \(5, 1879\); they must be"),
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"refresh": 1.5}, "refresh is 1.5; it must lie between 0 and 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refusals(backend, change, sentence):
    post, theta, v, x, y = problem("one chunk")
    with pytest.raises(ValueError, match=sentence):
        post.on(backend).trajectory(theta, v, theta * 0, x, y, **{"step_size": 0.1, "num_steps": 1, **change})


def test_overlapping_state_is_refused(backend):
    post, theta, v, x, y = problem("one chunk")
    with pytest.raises(ValueError, match="grad overlaps momentum; each must have memory of its own"):
        post.on(backend).trajectory(theta, v, v, x, y, step_size=0.1, num_steps=1)
    v = np.abs(v)
    with pytest.raises(ValueError, match="scale overlaps momentum; each must have memory of its own"):
        post.on(backend).trajectory(theta, v, theta * 0, x, y, step_size=0.1, num_steps=1, scale=v[0])
    with pytest.raises(ValueError, match="momentum has shape"):
        post.on(backend).trajectory(theta, v[:1], theta * 0, x, y, step_size=0.1, num_steps=1)


def everything():
    for case in CASES:
        post, theta, v, x, y = problem(case)
        for factors in ((None, None), (weights_of(y), scale_of(theta))):
            yield from in_one(post, theta, v, x, y, 0.01, 3, 1.0, 0.0, *factors)


def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)
