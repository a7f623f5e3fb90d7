import numpy as np
import pytest

import fastsmc as fs
from fastsmc.persistent import Component, log_mixture


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3))).argmax(axis=1)
    return fs.Posterior(fs.MLP([6, 8, 3])), x, y


@pytest.fixture(scope="module")
def states(problem):
    posterior, x, y = problem
    return list(fs.PersistentSMC(posterior, 16, fs.HMC(4), ess=1.2, seed=3).iterate(x, y))


def test_the_result_is_the_pool_of_all_temperatures(problem, states):
    posterior, x, _ = problem
    for count, state in enumerate(states, start=1):
        assert state.particles.shape == ((3 + count) * 16, posterior.network.num_params)
        assert state.weights.sum() == pytest.approx(1)
        np.testing.assert_array_equal(state.particles[:48], posterior.sample_prior(48, 3))
    result = states[-1]
    assert result.target.is_posterior(len(x)) and not result.warnings
    assert result.log_evidence == result.history.log_evidence[-1] and np.isnan(result.log_evidence_error)


def test_weights_and_evidence_are_those_of_the_paper(problem, states):
    """w = pi_t / mean(pi_s / Z_s) over the particles, in plain numpy; Z_t is their mean before the newest joined."""
    posterior, x, y = problem
    for state in (states[0], states[-1]):
        log_likelihood = posterior.log_likelihood(state.particles, x, y)
        betas = np.concatenate([np.zeros(3), state.history.temperature])
        log_z = np.concatenate([np.zeros(3), state.history.log_evidence])
        for parts in (len(betas) - 1, len(betas)):
            terms = betas[:parts, None] * log_likelihood[: 16 * parts] - log_z[:parts, None]
            mixture = np.logaddexp.reduce(terms, axis=0) - np.log(parts)
            log_weights = betas[-1] * log_likelihood[: 16 * parts] - mixture
            total = np.logaddexp.reduce(log_weights)
            if parts < len(betas):
                assert total - np.log(16 * parts) == pytest.approx(log_z[-1], abs=1e-3)
                ess = np.exp(2 * total - np.logaddexp.reduce(2 * log_weights))
                assert ess == pytest.approx(state.history.ess[-1], rel=1e-3)
        np.testing.assert_allclose(state.log_weights, log_weights - total, atol=1e-3)


def test_temperatures_leave_the_effective_sample_size_asked_for(states):
    history = states[-1].history
    assert np.all(np.diff(history.temperature) > 0) and history.temperature[-1] == 1.0
    np.testing.assert_allclose(history.ess[:-1], 1.2 * 16, rtol=1e-6)
    assert history.ess[-1] >= 1.2 * 16


def test_the_history_has_the_columns_of_smc(problem, states):
    posterior, x, y = problem
    tempered = fs.SMC(posterior, 16, fs.LikelihoodTempering(), fs.HMC(4), 2).run(x, y)
    assert list(states[-1].history) == list(tempered.history)


def test_old_particles_cost_no_evaluation(problem):
    posterior, x, y = problem
    result = fs.PersistentSMC(posterior, 16, fs.HMC(4, step_size=0.01)).run(x, y)
    np.testing.assert_allclose(result.history.data_passes, 2 + 4 * np.arange(1, len(result.history) + 1))


def test_a_run_that_is_cut_short_says_so(problem):
    posterior, x, y = problem
    result = fs.PersistentSMC(posterior, 16, fs.HMC(4), num_iterations=2).run(x, y)
    assert result.log_evidence is None and "not the full posterior" in result.warnings[0]


def test_runs_are_kept_and_repeated(problem, states, tmp_path):
    posterior, x, y = problem
    sampler = fs.PersistentSMC(posterior, 16, fs.HMC(4), ess=1.2)
    runs = fs.run_many(sampler, x, y, [3, 4], checkpoint=tmp_path)
    np.testing.assert_array_equal(runs.results[0].particles, states[-1].particles)
    np.testing.assert_array_equal(fs.load(tmp_path / "3" / "last.safetensors").log_weights, states[-1].log_weights)
    assert np.isfinite(runs.log_evidence_error)


def test_a_draw_without_a_finite_density_gets_weight_zero_and_is_counted_once(problem, poison_prior, monkeypatch):
    posterior, x, y = problem
    poison_prior(posterior)
    result = fs.PersistentSMC(posterior, 16, fs.HMC(4)).run(x, y)
    assert list(result.history.non_finite) == [2] + [0] * (len(result.history) - 1)
    assert np.all(result.weights[[3, 7]] == 0) and np.all(np.isfinite(result.particles[32:]))
    monkeypatch.setattr(
        posterior,
        "sample_prior",
        lambda num_particles, seed: np.full((num_particles, posterior.network.num_params), np.nan, np.float32),
    )
    with pytest.raises(fs.DegenerateError, match="all 32 particles"):
        fs.PersistentSMC(posterior, 16, fs.HMC(4)).run(x, y)


def test_the_mixture_is_computed_in_logarithms():
    log_likelihood = np.array([-1e6, -3.0, 1e6])
    mixture = [Component(0.0, 0.0), Component(0.5, -5e5), Component(1.0, -1e6)]
    by_hand = [np.log((1 + 1 + 1) / 3), 1e6 - 3 - np.log(3), 2e6 - np.log(3)]
    np.testing.assert_allclose(log_mixture(log_likelihood, mixture), by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"ess": 0.0}, "ess is 0.0; it must be positive"),
        ({"ess": float("inf")}, "ess is inf"),
        ({"move": fs.Langevin()}, "move is Langevin("),
        ({"move": fs.SGHMC()}, "persistent sampling needs one that leaves its target invariant"),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"resampling": "best"}, "resampling is 'best'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(problem, options, fragment):
    with pytest.raises(ValueError, match=r".") as error:
        fs.PersistentSMC(problem[0], **options)
    assert fragment in str(error.value) and "\n" not in str(error.value)
