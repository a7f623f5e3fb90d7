"""Runs that start at an earlier result, or at given particles."""

import numpy as np
import pytest
import torch
from conjugate import problem

import fastsmc as fs
from fastsmc.start import WarmStart

SCHEMES = {
    "adaptive": (fs.AdaptiveDataAnnealing(start=10, settle=3), None),
    "smooth": (fs.SmoothDataAnnealing(start=5), 12),
    "smooth, scaled": (fs.SmoothDataAnnealing(start=5, likelihood_scale="full"), 12),
    "steps": (fs.DataAnnealing(sizes=[10, 60]), 6),
    "full batch": (fs.FullBatch(), 6),
}


def sampler(posterior, scheme="adaptive", move=None, num_particles=512, **options):
    annealing, iterations = SCHEMES[scheme]
    move = move or fs.HMC(4, num_moves=2)
    return fs.SMC(posterior, num_particles, annealing, move, iterations, **options)


@pytest.fixture(scope="module")
def earlier():
    """40 points of 80, sampled."""
    posterior, x, y = problem(80)
    return sampler(posterior, seed=1).run(x[:40], y[:40])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_particles", [512, 300])
def test_old_data_stay_in_and_the_new_ones_join(earlier, scheme, num_particles):
    """tests/statistics/test_continuation.py says that the estimates are right."""
    posterior, x, y = problem(80)
    result = sampler(posterior, scheme, num_particles=num_particles, seed=1).run(x, y, initial=earlier)
    sizes = result.history.batch_size
    assert sizes[0] >= 40
    assert np.all(np.diff(sizes) >= 0)
    assert result.target.is_posterior(80)
    assert result.started_from == "result"
    assert len(result.particles) == num_particles
    assert result.log_evidence_error > earlier.log_evidence_error


def test_only_the_new_points_are_brought_in(earlier):
    posterior, x, y = problem(80)
    smc = sampler(posterior, "full batch", fs.RandomWalk(step_size=1e-3), seed=1)
    first = next(iter(smc.iterate(x, y, initial=earlier)))
    increment = first.history.log_evidence[0] - earlier.log_evidence
    likelihood = posterior.log_likelihood(earlier.particles, x[40:], y[40:])
    assert increment == pytest.approx(np.logaddexp.reduce(earlier.log_weights + likelihood), rel=1e-4)
    # all 80 for the first reweighting and for the move
    assert first.history.data_passes[0] == pytest.approx(2.0)


def test_iterations_and_their_random_numbers_go_on(earlier):
    posterior, x, y = problem(80)
    states = list(sampler(posterior, "full batch", seed=1).iterate(x, y, initial=earlier))
    begun = len(earlier.history)
    assert list(states[-1].history.iteration) == list(range(begun, begun + 6))
    again = sampler(posterior, "full batch", seed=1).run(x, y, initial=states[-1])
    assert again.history.iteration[0] == begun + 6
    assert again.history.log_evidence[0] == pytest.approx(states[-1].log_evidence)


@pytest.mark.parametrize("move", [fs.SGHMC(batch_size=16), fs.KineticLangevin(adjusted=False), fs.RandomWalk()])
def test_any_move_goes_on(earlier, move):
    posterior, x, y = problem(80)
    result = sampler(posterior, move=move, seed=1).run(x, y, initial=earlier)
    assert result.target.is_posterior(80)
    assert np.isfinite(result.log_evidence)


def test_results_that_no_run_can_go_on_from_are_refused(earlier):
    posterior, x, y = problem(80)
    smc = sampler(posterior)
    partial = next(iter(smc.iterate(x, y)))
    other = fs.Posterior(posterior.network, fs.Normal(3.0), posterior.likelihood)
    cases = [
        (smc, x, partial, "initial represents .*; it must be the posterior given all the 80 data points"),
        (smc, x[:39], earlier, "x has 39 rows that count; there must be at least the 40 of initial"),
        (sampler(other), x, earlier, r"initial has another prior, .*=1.0\); it must have that of the run, .*=3.0\)"),
        (fs.PersistentSMC(posterior, 8), x, earlier, "initial is given; it must be None for PersistentSMC"),
    ]
    for scheme in (fs.MiniBatch(20), fs.LikelihoodTempering()):
        refusal = "annealing is .*, which does not keep the data that initial has seen; it must be AdaptiveDataAnn"
        cases.append((fs.SMC(posterior, 8, scheme), x, earlier, refusal))
    for smc, rows, initial, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            smc.run(rows, y[: len(rows)], initial=initial)


STILL = fs.HMC(1, step_size=1e6)
"""No step is accepted."""


def test_particles_start_where_they_are_told_to_and_the_result_says_so(earlier):
    posterior, x, y = problem(80)
    given = np.random.default_rng(0).normal(size=(6, posterior.num_params))
    for kind in (np.asarray, torch.from_numpy):
        smc = fs.SMC(posterior, 6, fs.FullBatch(), STILL, 2, ess_threshold=0.0)
        result = smc.run(x, y, initial=kind(given))
        np.testing.assert_array_equal(result.particles, given.astype(np.float32))
        expected = posterior.log_likelihood(result.particles, x, y)
        np.testing.assert_allclose(result.log_weights, expected - np.logaddexp.reduce(expected), rtol=1e-5)
        assert result.started_from == "particles"
        assert result.log_evidence is None and result.log_evidence_error is None
        assert any("started where they were told to" in warning for warning in result.warnings)
    after = smc.run(np.vstack([x, x]), np.hstack([y, y]), initial=result)
    assert after.started_from == "particles"
    assert after.log_evidence is None
    assert earlier.started_from == "prior"


@pytest.mark.parametrize("kind", ["modules", "states", "array"])
def test_trained_networks_start_particles_in_turn(kind):
    posterior = fs.Posterior(fs.MLP([3, 5, 2]))
    modules = [posterior.network.to_torch() for _ in range(3)]
    weights = np.array([torch.nn.utils.parameters_to_vector(m.parameters()).detach().numpy() for m in modules])
    members = {"modules": modules, "states": [m.state_dict() for m in modules], "array": weights}[kind]
    exact = WarmStart(members, spread=0.0).particles(posterior, range(7), 0)
    np.testing.assert_array_equal(exact, weights[[0, 1, 2, 0, 1, 2, 0]])
    noise = WarmStart(members, spread=0.1).particles(posterior, range(900), 0) - np.tile(weights, (300, 1))
    # 28,800 numbers: their deviation is known to 0.4 %
    assert noise.std() == pytest.approx(0.1, rel=0.025)
    assert abs(noise.mean()) < 0.1 * 5 / noise.size**0.5
    smc = fs.SMC(posterior, 6, fs.FullBatch(), STILL, 1, seed=4, ess_threshold=0.0)
    x, y = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
    if kind != "array":
        started = smc.run(x, y, initial=members).particles
        np.testing.assert_array_equal(started, WarmStart(members).particles(posterior, range(6), 4))


def test_weights_in_units_of_a_sampled_scale_are_those_of_the_networks():
    posterior = fs.Posterior(fs.MLP([3, 4, 1]), fs.Normal(fs.HalfNormal(1.0)), fs.Gaussian(fs.HalfNormal(1.0)))
    members = np.random.default_rng(0).normal(size=(5, posterior.network.num_params)).astype(np.float32)
    particles = WarmStart(members, spread=0.0).particles(posterior, range(5), 2)
    unpacked = posterior.unpack(particles)
    for p in posterior.network.parameters:
        np.testing.assert_allclose(unpacked[p.name].reshape(5, -1), members[:, p.begin : p.end], rtol=1e-5)
    drawn = posterior.sample_prior(5, 2)
    np.testing.assert_array_equal(particles[:, members.shape[1] :], drawn[:, members.shape[1] :])
    np.testing.assert_array_equal(WarmStart(drawn, spread=0.0).particles(posterior, range(5), 3), drawn)


@pytest.mark.parametrize(
    ("initial", "sentence"),
    [
        (np.zeros((3, 11)), r"initial has shape \(3, 11\); it must be .* or \[4, d\] weights"),
        (torch.nn.Linear(3, 1), r"initial has shape \(\); it must be a Result, a list of networks,"),
        ([], r"initial has shape \(0,\)"),
        ([[1.0, 2.0]], "initial holds a list; each network must be a torch module or a state_dict"),
        (np.zeros((4, 10)), r"initial has shape \(4, 10\); it must be \[P, 11\], as particles are"),
        (np.full((4, 11), np.nan), "initial holds NaN, infinity or no numbers"),
        (np.full((4, 11), "w"), "initial holds NaN, infinity or no numbers"),
        ([torch.nn.Linear(3, 1)], "initial has no 0.weight of the shape that the network has"),
        ([{"0.weight": np.zeros((2, 3))}], "initial has no 0.bias of the shape"),
    ],
)
def test_starts_that_do_not_fit_are_refused(initial, sentence):
    posterior = fs.Posterior(fs.MLP([3, 2, 1]), likelihood="gaussian")
    x, y = np.ones((5, 3), np.float32), np.zeros(5)
    with pytest.raises((TypeError, ValueError), match=sentence):
        fs.SMC(posterior, 4).run(x, y, initial=initial)


@pytest.mark.parametrize("spread", [-0.1, np.nan, np.inf])
def test_a_spread_must_be_a_deviation(spread):
    with pytest.raises(ValueError, match=f"spread is {spread}; it must be a finite standard deviation"):
        WarmStart([], spread)


def test_what_the_earlier_result_warned_of_is_not_forgotten(tmp_path):
    posterior, x, y = problem(80)
    collapsed = sampler(posterior, "full batch", fs.RandomWalk(step_size=1e-3), 8).run(x[:40], y[:40], progress=False)
    (sentence,) = [said for said in collapsed.warnings if "collapsed" in said]
    smc = sampler(posterior, num_particles=8)
    result = smc.run(x, y, False, fs.Checkpoint(tmp_path, iterations=1), initial=collapsed)
    assert f"earlier: {sentence}" in result.warnings
    assert fs.resume(tmp_path, progress=False).warnings == result.warnings
    again = sampler(posterior, num_particles=8).run(x, y, False, initial=result)
    assert f"earlier: {sentence}" in again.warnings


def test_particles_of_later_slots_start_where_they_would_among_all():
    posterior, *_ = problem(10)
    start = WarmStart(np.arange(3 * posterior.num_params).reshape(3, -1), spread=0.1)
    whole = start.particles(posterior, range(8), 5)
    np.testing.assert_array_equal(start.particles(posterior, range(4, 7), 5), whole[4:7])
    assert not np.allclose(whole[0], whole[1], atol=1)
