"""Weights of the data's own: what they multiply, what they leave out, and what is refused."""

import numpy as np
import pytest
from conjugate import problem

import fastsmc as fs
from fastsmc.annealing import PRIOR, Target
from fastsmc.batches import Data
from fastsmc.cloud import Cloud
from fastsmc.moves import Draw
from fastsmc.stochastic import Parts


@pytest.fixture(scope="module")
def classes():
    """Points with weights of 0, 1, 2 and 3."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    return fs.Posterior(fs.MLP([4, 5, 3])), x, (x @ rng.normal(size=(4, 3))).argmax(axis=1), np.arange(120) % 4


@pytest.mark.parametrize(
    "sampler",
    [
        lambda p: fs.SMC(p, 8, fs.FullBatch(), fs.HMC(3, step_size=0.02, precondition=True), 4),
        lambda p: fs.SMC(p, 8, fs.LikelihoodTempering(ess=0.6), fs.RandomWalk(step_size=0.01), 4),
        lambda p: fs.PersistentSMC(p, 8, fs.HMC(3, step_size=0.02), 3),
    ],
)
def test_whole_numbers_repeat_points(classes, sampler):
    posterior, x, y, weights = classes
    repeated = sampler(posterior).run(x.repeat(weights, axis=0), y.repeat(weights))
    got = sampler(posterior).run(x, y, weights=weights)
    np.testing.assert_allclose(got.particles, repeated.particles, rtol=0, atol=1e-3)
    np.testing.assert_allclose(got.history.log_evidence, repeated.history.log_evidence, rtol=1e-4)
    np.testing.assert_allclose(got.history.temperature, repeated.history.temperature, rtol=1e-3)


@pytest.mark.parametrize("move", [fs.HMC(3), fs.SGHMC(batch_size=16)])
def test_points_of_weight_zero_are_as_if_they_were_not_there(classes, move):
    posterior, x, y, weights = classes
    kept = weights > 0
    smc = fs.SMC(posterior, 8, fs.AdaptiveDataAnnealing(start=20, settle=2), move, 40, stratify=True)
    got, expected = smc.run(x, y, weights=kept), smc.run(x[kept], y[kept])
    np.testing.assert_array_equal(got.particles, expected.particles)
    assert got.num_data == kept.sum()
    for column in ("log_evidence", "data_passes", "batch_size"):
        np.testing.assert_array_equal(got.history[column], expected.history[column])


def test_points_of_weight_zero_may_hold_anything():
    x, y = np.zeros((9, 2), np.float32), np.arange(9.0)
    x[4], y[[4, 6]], weights = np.nan, np.nan, np.ones(9)
    posterior = fs.Posterior(fs.MLP([2, 1]), likelihood="gaussian")
    weights[4] = 0
    with pytest.raises(ValueError, match=r"y\[6, 0\] is nan"):
        Data(x, y, posterior, 0, weights=weights)
    weights[6] = 0
    assert sorted(Data(x, y, posterior, 0, weights=weights).y[:, 0]) == [0, 1, 2, 3, 5, 7, 8]
    assert np.isnan(y[4])


def test_bridges_and_growing_batches_weight_points_by_both_factors(classes):
    """What targets add is the difference of the log densities that sums over single points give."""
    posterior, x, y, _ = classes
    data = Data(x, y, posterior, 0, weights=np.linspace(0.1, 2, 120))
    cloud = Cloud.from_prior(posterior, 5, 0, with_grad=True)
    points = np.array([posterior.log_likelihood(cloud.particles, *data.rows(i, i + 1)[:2]) for i in range(120)])
    points *= np.asarray(data.weights)[:, None]

    def density(target):
        share = np.where(np.arange(target.stop) < target.settled, 1.0, target.temperature if target.bridges else 1.0)
        return target.power * share[target.start :] @ points[target.start : target.stop]

    previous = PRIOR
    for target in (
        Target(0, 30, temperature=0.5),
        Target(0, 30),
        Target(0, 60),
        Target(0, 90, temperature=0.3, settled=60),
        Target(0, 90, temperature=0.8, settled=60),
        Target(30, 120, likelihood_scale=2.0),
    ):
        before = density(previous) if previous.stop else 0.0
        np.testing.assert_allclose(
            cloud.observe(data, previous, target), density(target) - before, rtol=1e-4, atol=1e-3
        )
        previous = target


def test_a_target_counts_its_points_by_their_mean_weight(classes):
    posterior, x, y, weights = classes
    states = list(fs.SMC(posterior, 8, fs.FullBatch(), fs.HMC(1), 2).iterate(x, y, weights=weights))
    assert all(state.target.count == pytest.approx(weights.sum()) for state in states)


def test_the_noise_of_forces_is_that_of_weighted_points():
    """All weights are three: gradients and their noise are threefold, the information of a data point is as it was.

    5,000 draws; drawing without replacement has 30/29 times the variance of the formula.
    """
    posterior, x, y = problem(30)
    data, target = Data(x, y, posterior, 0, weights=np.full(30, 3.0)), Target(0, 30, mean_weight=3.0)
    cloud, move = Cloud.from_prior(posterior, 1, 0, with_grad=False), fs.SGHMC(batch_size=20)
    draws = [Parts(cloud, data, target, move.batch_size, Draw(0, 0, number)) for number in range(5000)]
    forces = np.array([parts.number * parts.force(cloud.particles, 0)[0] for parts in draws])
    rows = [data.rows(i, i + 1)[:2] for i in range(30)]
    points = [posterior.log_likelihood_and_grad(cloud.particles, *row).grad[0] for row in rows]
    expected = move._force_variance(target) * np.var(points, axis=0) * 30 / 29
    np.testing.assert_allclose(forces.var(axis=0), expected, rtol=6 * (2 / 5000) ** 0.5)
    plain = Parts(cloud, Data(x, y, posterior, 0), Target(0, 30), move.batch_size, Draw(0, 0, 0))
    threefold, single = (
        parts.mean_squares([cloud.squares(parts.force(cloud.particles, 0))]) for parts in (draws[0], plain)
    )
    np.testing.assert_allclose(threefold, single, rtol=1e-5)
    # 90 points in as many parts have a third of that noise, for each is drawn by itself
    repeated = fs.SGHMC(batch_size=60).longest_step(Target(0, 90))
    assert repeated == pytest.approx(move.longest_step(target) * 3**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0] * 119, r"weights has shape \(119,\) and dtype float64; it must hold 120 numbers"),
        (np.ones((120, 1)), r"weights has shape \(120, 1\)"),
        (["1"] * 120, r"weights has shape \(120,\) and dtype <U1; it must hold 120 numbers"),
        ([1.0] * 7 + [-1.0] + [1.0] * 112, r"weights\[7\] is -1.0; every weight must be a finite number, zero or more"),
        ([1.0] * 7 + [np.nan] + [1.0] * 112, r"weights\[7\] is nan; "),
        ([1.0] * 7 + [1e300] + [1.0] * 112, r"weights\[7\] is 1e\+300; "),
        (np.zeros(120), "weights holds 120 zeros; at least one must be positive"),
    ],
)
def test_weights_that_are_none_are_refused_with_a_sentence(classes, weights, sentence):
    posterior, x, y, _ = classes
    for smc in (fs.SMC(posterior, 4), fs.PersistentSMC(posterior, 4)):
        with pytest.raises(ValueError, match=sentence):
            smc.run(x, y, weights=weights)


def test_the_first_points_stay_first_in_the_order_that_they_had(classes):
    posterior, x, y, _ = classes
    old = Data(x[:50], y[:50], posterior, 3, stratify=True)
    data = Data(x, y, posterior, 3, stratify=True, first=50)
    np.testing.assert_array_equal(data.x[:50], old.x)
    np.testing.assert_array_equal(np.sort(data.x[50:], axis=0), np.sort(x[50:], axis=0))
    assert not np.array_equal(data.x[50:], x[50:])
    shares = [np.bincount(labels, minlength=3) / len(labels) for labels in (y[50:], np.asarray(data.y[50:85]))]
    np.testing.assert_allclose(*shares, atol=0.05)
    with pytest.raises(ValueError, match="x has 120 rows that count; there must be at least the 121 of initial"):
        Data(x, y, posterior, 3, first=121)


def test_a_label_out_of_range_is_named_by_its_place_unless_it_does_not_count():
    posterior = fs.Posterior(fs.MLP([2, 3]))
    x, y, weights = np.zeros((9, 2), np.float32), np.arange(9) % 3, np.ones(9)
    y[[4, 7]] = 3, -1
    smc = fs.SMC(posterior, 4, fs.FullBatch(), fs.HMC(1), 1)
    with pytest.raises(ValueError, match=r"y\[4\] is 3; labels must lie in \[0, 3\)"):
        smc.run(x, y, progress=False)
    weights[4] = 0
    with pytest.raises(ValueError, match=r"y\[7\] is -1; labels must lie in \[0, 3\)"):
        smc.run(x, y, weights=weights, progress=False)
    weights[7] = 0
    smc.run(x, y, weights=weights, progress=False)
