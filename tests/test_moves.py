"""What moves learn and adapt: the scale of the weights, the noise of forces, the number and the length of moves."""

from dataclasses import replace

import numpy as np
import pytest
from conjugate import closed_form, problem

import fastsmc as fs
from fastsmc.annealing import PRIOR, Target
from fastsmc.batches import Data
from fastsmc.cloud import Cloud
from fastsmc.moves import Draw, correlation
from fastsmc.smc import default_move
from fastsmc.steps import StepSize
from fastsmc.stochastic import Parts


def posterior_cloud(num_data, num_particles, features=None, seed=0):
    """Exact draws from the posterior of a linear regression, with its data."""
    posterior, x, y = problem(num_data)
    x = x if features is None else x * np.asarray(features, np.float32)
    data, target = Data(x, y, posterior, seed), Target(0, num_data)
    _, mean, covariance = closed_form(posterior, x, y, seed, target)
    cloud = Cloud.from_prior(posterior, num_particles, seed, with_grad=True)
    draws = np.random.default_rng(seed).multivariate_normal(mean, covariance, num_particles)
    cloud.particles = draws.astype(np.float32)
    cloud.log_prior = posterior.log_prior(cloud.particles)
    cloud.observe(data, PRIOR, target)
    return cloud, data, target, np.linalg.inv(covariance)


def test_squared_gradients_of_the_posterior_tell_its_curvature():
    """4,096 draws know each of three variances to 2.2 %; 15 % off has a probability below 1e-6."""
    cloud, _, target, precision = posterior_cloud(50, 4096, [0.1, 5.0])
    cloud.learn(cloud.information_at(target))
    np.testing.assert_allclose(cloud.scale(target) ** -2.0, np.diag(precision), rtol=0.15)


def test_the_scale_follows_the_number_of_points_that_count():
    cloud, _, target, _ = posterior_cloud(50, 64)
    cloud.learn(np.array([0.0, 1.0, 4.0]))
    prior = cloud.posterior.prior_precision[0]
    np.testing.assert_allclose(cloud.scale(target), (prior + 50 * np.array([0, 1, 4.0])) ** -0.5, rtol=1e-6)
    bridge = Target(0, 50, temperature=0.25, settled=10)
    assert bridge.count == 20
    np.testing.assert_allclose(cloud.scale(bridge), (prior + 20 * np.array([0, 1, 4.0])) ** -0.5, rtol=1e-6)
    cloud.learn(np.array([np.nan, 1, 1]))
    np.testing.assert_array_equal(cloud.information, [0, 1, 4])


def acceptances(precondition):
    """Of MALA at its own best step, on features that differ by a factor of 500."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 2)) * [0.1, 50]).astype(np.float32)
    y = (x @ [1.0, 0.02] + rng.normal(size=200)).astype(np.float32)
    posterior = fs.Posterior(fs.MLP([2, 1]), fs.Normal(1.0), fs.Gaussian(1.0))
    move = fs.MALA(precondition=precondition, num_moves=4)
    return fs.SMC(posterior, 256, fs.DataAnnealing(start=5), move, 30, seed=1).run(x, y).history


def test_a_preconditioner_lets_badly_scaled_weights_take_long_steps():
    """Without it the step is that of the narrowest weight, 1/700 of the widest; with it, of the order of one."""
    plain, scaled = acceptances(False), acceptances(True)
    for history in (plain, scaled):
        assert abs(history.acceptance[-10:].mean() - fs.MALA().aim) < 0.15
    assert plain.step_size[-1] < 0.01 and scaled.step_size[-1] > 0.5


@pytest.mark.parametrize("kinds", [True, False])
def test_what_targets_add_is_the_difference_of_their_densities(kinds):
    """Whatever follows what, with gradients or without, and with the likelihood forgotten now and then."""
    posterior, x, y = problem(60)
    data, cloud = Data(x, y, posterior, 0), Cloud.from_prior(posterior, 16, 0, with_grad=kinds)

    def density(target):
        if target.batch_size == 0:
            return cloud.log_prior
        rows, labels, weights = data.batch(target)
        return cloud.log_prior + target.power * posterior.log_likelihood(cloud.particles, rows, labels, weights=weights)

    sequence = [
        *(Target(0, 10, temperature=t) for t in (0.2, 1.0)),
        Target(0, 25, settled=10),
        *(Target(0, 40, temperature=t, settled=25) for t in (0.1, 0.1, 0.6, 1.0)),
        Target(0, 50, likelihood_scale=1.2),
        Target(20, 40, likelihood_scale=3.0),
        Target(40, 60, likelihood_scale=3.0),
        Target(0, 60),
    ]
    previous = PRIOR
    for number, target in enumerate(sequence):
        added = cloud.observe(data, previous, target)
        np.testing.assert_allclose(added, density(target) - density(previous), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(
            cloud.log_prior + target.power * cloud.likelihood(data, target), density(target), 1e-5
        )
        if kinds:
            rows, labels, weights = data.batch(target)
            _, grad = posterior.log_likelihood_and_grad(cloud.particles, rows, labels, weights=weights)
            np.testing.assert_allclose(cloud.grad, grad, rtol=1e-3, atol=1e-3)
        elif number % 3 == 1:  # as moves do that do not compute it
            cloud.log_likelihood = None
        previous = target


def test_no_row_is_previewed_twice():
    posterior, x, y = problem(60)
    data, cloud = Data(x, y, posterior, 0), Cloud.from_prior(posterior, 8, 0, with_grad=False)
    rows = [cloud.preview(data, 10, stop) for stop in (20, 40, 20, 60)]
    assert cloud.evaluations == 50 * 8
    np.testing.assert_allclose(rows[-1], posterior.log_likelihood(cloud.particles, *data.rows(10, 60)[:2]), rtol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[2])
    cloud, _ = cloud.resample(8, "systematic", 0, 0)
    np.testing.assert_allclose(
        cloud.preview(data, 10, 20), posterior.log_likelihood(cloud.particles, *data.rows(10, 20)[:2]), rtol=1e-6
    )


class Hot(fs.SGHMC):
    """It takes its forces for exact ones."""

    def _force_variance(self, target):
        return 1e-12


def excess(move, num_data=400, num_particles=512):
    """By what share second moments are too large, after moves that start at exact draws of the posterior."""
    cloud, data, target, precision = posterior_cloud(num_data, num_particles)
    cloud.grad = None
    covariance, mean = np.linalg.inv(precision), cloud.particles.mean(axis=0)
    step = StepSize(move)
    for iteration in range(40):
        step.prepare(cloud, data, target, target, Draw(0, 10**6))
        outcome = move(cloud, data, target, step.at(target), Draw(0, iteration))
        assert np.isnan(outcome.acceptance) and np.isfinite(outcome.heat)
        step.adapt(outcome, target)
    variance = np.mean((cloud.particles - mean).astype(float) ** 2, axis=0)
    return np.mean(variance / np.diag(covariance)) - 1, outcome.heat


def test_refreshments_leave_room_for_the_noise_of_the_forces():
    """Parts of 8 of 400 points at the longest step: without room for it, their noise heats the particles."""
    move = fs.SGHMC(num_steps=25, batch_size=8)
    hot = Hot(num_steps=25, batch_size=8, step_size=move.longest_step(Target(0, 400)))
    (right, cool), (wrong, warm) = excess(move), excess(hot)
    assert abs(right) < 0.2 and abs(cool - 1) < 0.1
    assert wrong - right > 0.3 and warm > 1.25


def test_a_step_that_heats_is_shortened():
    move = Hot(batch_size=8)
    step = StepSize(move)
    cloud, data, target, _ = posterior_cloud(400, 64)
    step.prepare(cloud, data, PRIOR, target, Draw(0, 10**6))
    step.value = 3.0
    for iteration in range(60):
        outcome = move(cloud, data, target, step.at(target), Draw(0, iteration))
        step.adapt(outcome, target)
    assert step.value < 0.5 and outcome.heat < 2


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("step_size", [1.0, 1e3, 1e30])
def test_particles_that_diverge_stay_where_they_were(step_size):
    """A move that neither accepts nor rejects would carry them to where outputs overflow."""
    posterior, x, y = problem(300)
    move = fs.SGHMC(batch_size=50, step_size=step_size, precondition=False)
    result = fs.SMC(posterior, 8, fs.FullBatch(), move, 3, ess_threshold=0.0, seed=1).run(x, y)
    assert np.array_equal(result.particles, posterior.sample_prior(8, 1))
    assert np.all(result.history.diverged == 8)
    assert any("more than half of the particles diverged at 3 of 3 iterations" in said for said in result.warnings)
    assert np.isfinite(result.predict_proba(x)).all()


def test_sghmc_accepts_or_rejects_where_its_forces_are_exact():
    posterior, x, y = problem(40)
    result = fs.SMC(posterior, 64, fs.DataAnnealing(start=2), fs.SGHMC(), 8).run(x, y)
    assert np.all(np.isfinite(result.history.acceptance)) and result.warnings == []
    result = fs.SMC(posterior, 64, fs.DataAnnealing(start=10), fs.SGHMC(batch_size=20), 8).run(x, y)
    np.testing.assert_array_equal(np.isnan(result.history.acceptance), result.history.batch_size > 20)
    assert any("approximately" in warning for warning in result.warnings)
    exact = fs.SMC(posterior, 64, fs.DataAnnealing(start=10), fs.SGHMC(batch_size=20, weighted=True), 8).run(x, y)
    assert np.all(np.isfinite(exact.history.acceptance))
    assert not any("approximately" in warning for warning in exact.warnings)


def test_the_variance_of_forces_is_that_of_the_parts_there_are():
    """30 points in parts of at most 20 are two parts of 15; 5,000 forces know it to 2 %, and six times that is allowed.

    Drawing without replacement has 30/29 times the variance of the formula, whose information is that of the points.
    """
    cloud, data, target, _ = posterior_cloud(30, 1)
    move = fs.SGHMC(batch_size=20)
    draws = [Parts(cloud, data, target, move.batch_size, Draw(0, 0, number)) for number in range(5000)]
    forces = np.array([parts.number * parts.force(cloud.particles, 0)[0] for parts in draws])
    rows = [data.rows(i, i + 1)[:2] for i in range(30)]
    points = [cloud.posterior.log_likelihood_and_grad(cloud.particles, *row).grad[0] for row in rows]
    expected = move._force_variance(target) * np.var(points, axis=0) * 30 / 29
    np.testing.assert_allclose(forces.var(axis=0), expected, rtol=6 * (2 / 5000) ** 0.5)


@pytest.mark.parametrize(("particles", "sizes"), [(3, [3]), (10, [4, 4, 2]), (64, [4] * 16), (100, [8] * 12 + [4])])
def test_groups_of_particles_have_parts_of_their_own(particles, sizes, monkeypatch):
    cloud, data, target, _ = posterior_cloud(50, particles)
    move, seen, force = fs.SGHMC(num_steps=1, batch_size=10), [], Parts.force

    def watched(parts, theta, part):
        seen.append(len(theta))
        return force(parts, theta, part)

    cloud.learn(np.ones(cloud.particles.shape[1]))
    monkeypatch.setattr(Parts, "force", watched)
    before = cloud.particles.copy()
    move(cloud, data, target, 0.1, Draw(0, 0))
    assert seen == sizes
    assert np.all(np.any(cloud.particles != before, axis=1))


def test_sghmc_goes_from_exact_forces_to_parts_and_back():
    posterior, x, y = problem(60)
    data, cloud = Data(x, y, posterior, 0), Cloud.from_prior(posterior, 16, 0, with_grad=False)
    move, previous = fs.SGHMC(batch_size=20), PRIOR
    step = StepSize(move)
    for iteration, size in enumerate((10, 10, 40, 40, 60, 20, 20)):
        target = Target(0, size)
        cloud.observe(data, previous, target)
        step.prepare(cloud, data, previous, target, Draw(0, 10**6))
        outcome = move(cloud, data, target, step.at(target), Draw(0, iteration))
        assert np.isnan(outcome.acceptance) == (size > 20) == (cloud.grad is None) == (cloud.log_likelihood is None)
        truth = posterior.log_likelihood(cloud.particles, *data.batch(target)[:2])
        np.testing.assert_allclose(cloud.likelihood(data, target), truth, rtol=1e-5)
        previous = target


def test_moves_are_made_until_the_densities_have_decorrelated():
    posterior, x, y = problem(40)

    def counted(step_size):
        numbers = []

        class Counted(fs.HMC):
            def __call__(self, cloud, data, target, step, draw):
                numbers.append(draw.number)
                return super().__call__(cloud, data, target, step, draw)

        fs.SMC(posterior, 128, fs.DataAnnealing(start=10), Counted(5, num_moves=None, step_size=step_size), 3).run(x, y)
        return max(numbers) + 1

    assert counted(1e-4) == fs.HMC.most_moves
    assert counted(0.06) <= 4


def test_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    a[3] = -np.inf
    assert correlation(a, b) == pytest.approx(np.corrcoef(np.delete(a, 3), np.delete(b, 3))[0, 1])
    assert correlation(np.ones(5), np.arange(5.0)) == 1.0


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_the_length_of_trajectories_varies(jitter, monkeypatch):
    cloud, data, target, _ = posterior_cloud(40, 16)
    lengths, trajectory = [], Cloud.trajectory
    monkeypatch.setattr(
        Cloud, "trajectory", lambda *a, **plan: lengths.append(plan["step_size"]) or trajectory(*a, **plan)
    )
    for iteration in range(200):
        fs.HMC(2, jitter=jitter)(cloud, data, target, 0.1, Draw(0, iteration))
    assert 0.1 * (1 - jitter) <= min(lengths) and max(lengths) <= 0.1 * (1 + jitter)
    assert len(set(lengths)) == (200 if jitter else 1)
    assert max(lengths) - min(lengths) >= 0.09 * jitter


def test_few_data_are_sampled_exactly_and_many_in_parts():
    assert default_move(5000).backward_kernel(Target(0, 5000)).accepted(np.zeros(1), np.ones(1)) == [False]
    assert isinstance(default_move(5001), fs.SGHMC)


def test_the_defaults_keep_a_quarter_of_the_particles(problem_of_classes):
    posterior, x, y = problem_of_classes
    result = fs.SMC(posterior, 32).run(x, y, progress=False)
    assert result.target.is_posterior(len(x)) and result.warnings == []
    assert result.history.distinct_ancestors.min() >= 8
    assert result.evaluate(x, y)["accuracy"] > 0.9


@pytest.fixture
def problem_of_classes():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    return fs.Posterior(fs.MLP([6, 8, 3])), x, (x @ rng.normal(size=(6, 3))).argmax(axis=1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: fs.RandomWalk(precondition=True), "precondition is True; it must be False for RandomWalk"),
        (lambda: fs.HMC(jitter=1.0), "jitter is 1.0; it must be at least 0 and less than 1"),
        (lambda: fs.SGHMC(num_moves=None), "num_moves is None; it must be a number for SGHMC"),
        (lambda: fs.SGHMC(coverage=-1), "coverage is -1; it must be at least 0"),
        (lambda: fs.HMC(num_moves=0), "num_moves is 0; it must be at least 1, or None to be adapted"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert sentence in str(error.value)


def test_what_suits_a_move_goes_with_what_it_is():
    assert (fs.HMC().aim, fs.MALA().aim, fs.RandomWalk().aim, fs.Langevin().aim) == (0.8, 0.574, 0.234, 0.9)
    for move in (fs.HMC(), fs.MALA(), fs.KineticLangevin()):
        loose = replace(move, adjusted=False)
        assert loose == type(move)(adjusted=False) and loose.aim == 0.95
    assert (fs.SGHMC().aim, replace(fs.SGHMC(), weighted=True).aim) == (0.8, 0.95)
    assert replace(fs.HMC(target_acceptance=0.7), adjusted=False).aim == 0.7
