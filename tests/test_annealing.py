import math

import numpy as np
import pytest

import fastsmc as fs
from fastsmc.annealing import PRIOR, STEP_ERROR, Target, highest_temperature

N, T = 1437, 60


def schedule(scheme, iterations=T, num_data=N):
    target, found = PRIOR, []
    for iteration in range(iterations):
        target = scheme.next_target(iteration, iterations, range(num_data), target, None)
        found.append(target)
    return found


@pytest.mark.parametrize(
    "scheme",
    [
        fs.FullBatch(),
        fs.DataAnnealing(start=50),
        fs.DataAnnealing(start=50, likelihood_scale="full"),
        fs.DataAnnealing(sizes=[10, 20, 5000]),
        fs.SmoothDataAnnealing(start=50),
        fs.SmoothDataAnnealing(start=50, ramp="linear", likelihood_scale="full", full=0.0),
        fs.SmoothDataAnnealing(start=10**6, ramp="cosine", full=1.0),
        fs.LikelihoodTempering([0.1, 0.5, 1.0]),
    ],
)
@pytest.mark.parametrize("iterations", [10, 60])
def test_nested_batches_grow_and_end_on_the_posterior(scheme, iterations):
    targets = schedule(scheme, iterations)
    sizes = [t.batch_size for t in targets]
    assert all(t.start == 0 for t in targets)
    assert np.all(np.diff(sizes) >= 0) and sizes[0] >= 1
    assert targets[-1].is_posterior(N)


def test_data_annealing_doubles():
    sizes = [t.batch_size for t in schedule(fs.DataAnnealing(start=100), 8, 1000)]
    assert sizes == [100, 100, 200, 200, 400, 800, 800, 1000]


@pytest.mark.parametrize(("factor", "num_data"), [(5, 125), (10, 1000), (3, 243), (2, 2**20)])
def test_steps_end_where_a_power_of_the_factor_is_all_the_data(factor, num_data):
    steps = fs.DataAnnealing(start=1, factor=factor).steps(num_data)
    assert steps == [factor**k for k in range(len(steps))] and steps[-1] == num_data


def test_given_sizes_share_the_iterations():
    sizes = [t.batch_size for t in schedule(fs.DataAnnealing(sizes=[10, 30]), 8, 100)]
    assert sizes == [10, 10, 10, 30, 30, 30, 100, 100]


def test_a_geometric_ramp_has_equal_ratios():
    sizes = np.array([t.batch_size for t in schedule(fs.SmoothDataAnnealing(start=10**4, full=0), 6, 10**9)])
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 10.0, rtol=1e-4)


def test_scaled_batches_weigh_as_much_as_all_the_data():
    for t in schedule(fs.SmoothDataAnnealing(start=50, likelihood_scale="full")):
        assert t.power * t.batch_size == pytest.approx(N)


@pytest.mark.parametrize(("full", "iterations"), [(0.5, 4), (0.25, 2), (0.0, 1), (1.0, 8)])
def test_so_many_iterations_have_all_the_data(full, iterations):
    sizes = [t.batch_size for t in schedule(fs.SmoothDataAnnealing(start=50, full=full), 8, 1000)]
    assert sizes.count(1000) == iterations


def test_mini_batches_are_consecutive_blocks_over_and_over():
    targets = schedule(fs.MiniBatch(30, every=2), 10, 100)
    assert [(t.start, t.stop) for t in targets[::2]] == [(0, 30), (30, 60), (60, 90), (10, 40), (40, 70)]
    assert targets[::2] == targets[1::2]
    assert [t.start for t in schedule(fs.MiniBatch(25), 9, 100)] == [0, 25, 50, 75, 0, 25, 50, 75, 0]
    assert {t.start for t in schedule(fs.MiniBatch(200), 9, 300)} == {0, 100}  # so that all points are seen
    assert targets[0].likelihood_scale == pytest.approx(100 / 30)
    assert schedule(fs.MiniBatch(500), 1, 100) == [Target(0, 100, 1.0)]


def test_adaptive_tempering_hits_its_conditional_ess():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 3, 200)
    posterior = fs.Posterior(fs.MLP([4, 8, 3]))
    smc = fs.SMC(posterior, 512, fs.LikelihoodTempering(ess=0.6), fs.HMC(3), 200, ess_threshold=1.0)
    history = smc.run(x, y, progress=False).history
    assert history.temperature[-1] == 1.0 and np.all(np.diff(history.temperature) > 0)
    # resampled at every iteration, so that the ESS is the conditional one
    np.testing.assert_allclose(history.ess[:-1] / 512, 0.6, atol=1e-6)
    assert history.ess[-1] / 512 >= 0.6


@pytest.mark.parametrize("zero", [1e-7, 0.02, 0.5, 0.999])
@pytest.mark.parametrize("current", [0.0, 0.6])
@pytest.mark.parametrize(
    "excess",
    [
        lambda share: 1 - share,
        lambda share: 1 / share - 1,
        lambda share: 1 - share**5,
        lambda share: np.float64(-np.inf if share > 1 else 1),
        lambda share: np.nan if share > 1 else 1.0,
        lambda share: np.nan if share > 1.5 else 1 - share,
    ],
)
def test_the_highest_temperature_is_where_the_excess_ends(excess, current, zero):
    """To the error that is stated; never in more evaluations than by halving alone, which takes all binary digits.

    Where the function is smooth the last half of the digits comes for little.
    """
    step, evaluations = zero * (1 - current), []

    def counted(temperature):
        evaluations.append(temperature)
        return excess((temperature - current) / step)

    found = highest_temperature(current, counted)
    assert found > current
    assert abs(found - current - step) <= STEP_ERROR * step + 2 * math.ulp(1.0)
    digits, smooth = -math.log2(STEP_ERROR), np.isfinite(excess(1.1))
    assert len(evaluations) <= 2 - math.log2(zero) + (digits / 2 if smooth else digits)


def test_a_temperature_rises_to_one_or_hardly():
    assert highest_temperature(0.25, lambda temperature: 0.0) == 1
    for excess in (-1.0, -np.inf, np.nan):
        assert 0.25 < highest_temperature(0.25, lambda temperature, excess=excess: excess) <= 0.25 + math.ulp(1.0)


def test_an_adaptive_run_that_is_cut_short_says_which_target_it_holds():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 3, 200)
    result = fs.SMC(fs.Posterior(fs.MLP([4, 8, 3])), 64, fs.LikelihoodTempering(), fs.HMC(3), 2).run(x, y)
    assert result.log_evidence is None
    assert "temperature" in result.warnings[0] and "not the full posterior" in result.warnings[0]


def classes(num_data=300):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_data, 4)).astype(np.float32)
    return fs.Posterior(fs.MLP([4, 8, 3])), x, (x @ rng.normal(size=(4, 3))).argmax(axis=1)


@pytest.mark.parametrize("growth", [0.05, 1.0])
def test_adaptive_data_annealing_keeps_its_conditional_ess(growth):
    posterior, x, y = classes()
    scheme = fs.AdaptiveDataAnnealing(start=10, ess=0.6, growth=growth)
    result = fs.SMC(posterior, 256, scheme, fs.HMC(5), 500, ess_threshold=1.0, seed=1).run(x, y, progress=False)
    h = result.history
    assert result.target.is_posterior(len(x)) and len(h) < 500
    assert np.all(np.diff(h.batch_size) >= 0) and h.batch_size[0] == 10
    # resampled at every iteration, so that the ESS is the conditional one
    assert np.all(h.ess >= 0.6 * 256 - 1e-3)
    growing = np.diff(h.batch_size) > 0
    bridged = (h.temperature < 1) & (h.batch_size > 10)
    assert growing.sum() > 4 and np.any(bridged)
    assert np.all(h.distinct_ancestors > 256 / 4)


def test_particles_only_move_once_all_data_are_in():
    posterior, x, y = classes()
    result, settled = (
        fs.SMC(posterior, 32, fs.AdaptiveDataAnnealing(start=10, settle=n), fs.HMC(3), seed=1).run(x, y, progress=False)
        for n in (0, 7)
    )
    count = len(result.history)
    assert len(settled.history) == count + 7 and result.target.is_posterior(300)
    np.testing.assert_array_equal(settled.history.ess[:count], result.history.ess)
    np.testing.assert_allclose(settled.log_evidence, result.log_evidence)
    assert not settled.history.resampled[count:].any() and np.all(settled.history.ess[count:] == settled.ess)
    assert not np.array_equal(settled.particles, result.particles)


def test_cached_likelihoods_are_those_of_the_target_over_bridges(monkeypatch):
    """Points that join add their share, more of it with every step of a bridge, and resampling moves the sums about."""
    posterior, x, y = classes(120)
    clouds, bridged, reweight = [], [], fs.cloud.Cloud.reweight

    def record(self, *arguments):
        clouds.append(self)
        return reweight(self, *arguments)

    monkeypatch.setattr(fs.cloud.Cloud, "reweight", record)
    data = fs.batches.Data(x, y, posterior, 2)
    # no step is accepted, so that the sums are those that joining has left
    move = fs.HMC(1, step_size=1e4)
    smc = fs.SMC(posterior, 32, fs.AdaptiveDataAnnealing(start=10, ess=0.9, growth=1.0), move, 200, seed=2)
    for state in smc.iterate(x, y):
        target, cloud = state.target, clouds[-1]
        bridged.append(target.bridges)
        rows, labels, weights = data.batch(target)
        truth, grad = posterior.log_likelihood_and_grad(cloud.particles, rows, labels, weights=weights)
        np.testing.assert_allclose(cloud.log_likelihood, truth, rtol=1e-5)
        np.testing.assert_allclose(cloud.grad, grad, rtol=0, atol=1e-4 * np.abs(grad).max())
    assert any(bridged) and not bridged[-1]


@pytest.mark.parametrize(
    ("previous", "target", "joins"),
    [
        (Target(0, 5), Target(0, 9), (5, 1.0)),
        (Target(0, 5), Target(0, 9, temperature=0.25, settled=5), (5, 0.25)),
        (Target(0, 9, temperature=0.25, settled=5), Target(0, 9, temperature=0.75, settled=5), (5, 0.5)),
        (Target(0, 9, temperature=0.25, settled=5), Target(0, 9, settled=5), (5, 0.75)),
        (Target(0, 9, settled=5), Target(0, 12, settled=9), (9, 1.0)),
        (Target(0, 9, temperature=0.2), Target(0, 9, temperature=0.4), (9, 1.0)),
        (Target(0, 5), Target(5, 9), None),
        (Target(0, 9), Target(0, 5), None),
        (Target(0, 9, temperature=0.25, settled=5), Target(0, 12, settled=9), None),
        (Target(0, 5), Target(0, 9, temperature=0.25, settled=3), None),
    ],
)
def test_what_joins(previous, target, joins):
    assert target.joins(previous) == joins


def test_points_on_a_bridge_count_by_their_temperature():
    target = Target(0, 4, temperature=0.25, settled=3)
    assert target.power == 1.0 and target.bridges and not target.is_posterior(4)
    np.testing.assert_array_equal(target.weights, np.float32([1, 1, 1, 0.25]))
    assert Target(0, 4, temperature=0.25).weights is None and Target(0, 4, temperature=0.25).power == 0.25


def test_stratified_batches_hold_the_classes_in_proportion():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [10, 70, 120]))
    x = rng.normal(size=(200, 2)).astype(np.float32)
    posterior = fs.Posterior(fs.MLP([2, 3]))
    ordered = fs.batches.Data(x, y, posterior, 4, stratify=True)
    shares = np.array([10, 70, 120]) / 200
    for size in range(1, 201):
        counts = np.bincount(ordered.y[:size], minlength=3)
        assert np.all(np.abs(counts - size * shares) <= 2)
    assert sorted(map(tuple, ordered.x)) == sorted(map(tuple, x))
    assert not np.array_equal(ordered.x, fs.batches.Data(x, y, posterior, 5, stratify=True).x)
    rare = fs.batches.Data(x, y == 0, fs.Posterior(fs.MLP([2, 1]), likelihood="bernoulli"), 4, stratify=True)
    assert all(abs(rare.y[:size].sum() - size / 20) <= 1 for size in range(1, 201))
    with pytest.raises(ValueError, match="stratify is True, but the likelihood has no classes"):
        fs.batches.Data(x, x[:, 0], fs.Posterior(fs.MLP([2, 1]), likelihood="gaussian"), 0, stratify=True)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: fs.MiniBatch(0), "batch_size is 0; it must be at least 1"),
        (lambda: fs.MiniBatch(5, every=0), "every is 0"),
        (lambda: fs.MiniBatch(5, likelihood_scale="half"), "likelihood_scale is 'half'; it must be 'full'"),
        (lambda: fs.DataAnnealing(start=0), "start is 0"),
        (lambda: fs.DataAnnealing(start=float("nan")), "start is nan"),
        (lambda: fs.DataAnnealing(factor=1.0), "factor is 1.0; it must be greater than 1"),
        (lambda: fs.DataAnnealing(sizes=[]), "sizes is []"),
        (lambda: fs.DataAnnealing(sizes=[5, 5]), "increasing"),
        (lambda: fs.SmoothDataAnnealing(ramp="cubic"), "ramp is 'cubic'; it must be one of linear"),
        (lambda: fs.SmoothDataAnnealing(full=2), "full is 2; it must lie between 0 and 1"),
        (lambda: fs.LikelihoodTempering([0.5]), "increase from above 0 to exactly 1"),
        (lambda: fs.LikelihoodTempering([0.5, 0.4, 1.0]), "increase"),
        (lambda: fs.LikelihoodTempering(ess=1.0), "ess is 1.0"),
        (lambda: fs.AdaptiveDataAnnealing(start=0), "start is 0"),
        (lambda: fs.AdaptiveDataAnnealing(ess=0.0), "ess is 0.0; it must lie between 0 and 1"),
        (lambda: fs.AdaptiveDataAnnealing(settle=-1), "settle is -1; it must be at least 0"),
        (lambda: fs.AdaptiveDataAnnealing(growth=0), "growth is 0; it must lie between 0 and 1"),
        (lambda: schedule(fs.DataAnnealing(sizes=[1, 2, 3]), 2, 10), "num_iterations is 2; 4 steps"),
        (lambda: schedule(fs.LikelihoodTempering([0.1, 0.5, 1.0]), 2), "3 temperatures need at least"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, fragment):
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert fragment in str(error.value) and "\n" not in str(error.value)
