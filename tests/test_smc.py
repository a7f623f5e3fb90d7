import numpy as np
import pytest
import torch
from problems import threads_change_no_bit
from processes import printed

import fastsmc as fs
from fastsmc import backends
from fastsmc.annealing import PRIOR, Target
from fastsmc.batches import Data
from fastsmc.cloud import Cloud
from fastsmc.moves import Draw
from fastsmc.steps import StepSize


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3))).argmax(axis=1)
    return fs.Posterior(fs.MLP([6, 8, 3])), x, y


def everything():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 20)).astype(np.float32), rng.integers(0, 4, 300)
    posterior, scheme = fs.Posterior(fs.MLP([20, 16, 4])), fs.SmoothDataAnnealing(start=30)
    for sampler in (
        fs.SMC(posterior, 33, scheme, fs.HMC(4), 12, seed=5),
        fs.SMC(posterior, 33, scheme, fs.HMC(4), 12, seed=5, waste_free=3),
        fs.PersistentSMC(posterior, 33, fs.HMC(4), 12, seed=5),
    ):
        result = sampler.run(x, y, progress=False)
        yield from (result.particles, result.log_weights, result.history.log_evidence)


def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)


def test_another_process_gives_the_same_bits():
    script = "import test_smc; print([part.tobytes().hex() for part in test_smc.everything()])"
    assert printed(script).strip() == str([part.tobytes().hex() for part in everything()])


def test_another_seed_is_another_run(problem):
    posterior, x, y = problem
    runs = [fs.SMC(posterior, 8, num_iterations=3, seed=s).run(x, y).particles for s in (0, 1, 2**63)]
    assert not np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "move",
    [
        fs.RandomWalk(),
        fs.Langevin(),
        fs.MALA(),
        fs.HMC(5),
        fs.HMC(5, adjusted=False, target_acceptance=0.95),
        fs.HMC(2, num_moves=3),
        fs.KineticLangevin(num_steps=3),
        fs.KineticLangevin(num_steps=3, adjusted=False),
        fs.SGHMC(num_steps=5),
    ],
)
def test_steps_are_found_and_adapted_from_the_prior(problem, move):
    posterior, x, y = problem
    result = fs.SMC(posterior, 64, fs.SmoothDataAnnealing(start=20), move, 60).run(x, y)
    late = result.history.acceptance[-20:]
    assert abs(late.mean() - move.aim) < 0.12
    assert np.all(np.isfinite(result.particles))
    if not isinstance(move, fs.RandomWalk):
        assert result.evaluate(x, y)["accuracy"] > 0.9


@pytest.mark.parametrize("waste_free", [1, 4])
def test_cached_likelihoods_and_gradients_are_those_of_the_particles(problem, waste_free):
    """Nested batches add up increments, resampling and rejection move them about: the sums must stay true."""
    posterior, x, y = problem
    smc = fs.SMC(posterior, 16, fs.SmoothDataAnnealing(start=20), fs.HMC(3), 25, seed=2, waste_free=waste_free)
    for result in smc.iterate(x, y):
        cloud = result.state.cloud
        np.testing.assert_array_equal(cloud.particles, result.particles)
        data = fs.batches.Data(x, y, posterior, 2)
        log_likelihood, grad = posterior.log_likelihood_and_grad(cloud.particles, *data.batch(result.target)[:2])
        np.testing.assert_allclose(cloud.log_likelihood, log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(cloud.grad, grad, rtol=0, atol=1e-4 * np.abs(grad).max())
        np.testing.assert_allclose(cloud.log_prior, posterior.log_prior(cloud.particles), rtol=1e-5)


def test_history_adds_up(problem):
    posterior, x, y = problem
    result = fs.SMC(posterior, 16, fs.FullBatch(), fs.HMC(4, step_size=0.01), 5).run(x, y)
    h = result.history
    assert len(h) == 5 and list(h.iteration) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(h.data_passes, 1 + 4 * np.arange(1, 6))
    assert np.all(np.diff(h.seconds) > 0)
    assert h.log_evidence[-1] == result.log_evidence
    np.testing.assert_array_equal(h.distinct_ancestors[~h.resampled], 16)
    assert np.all((h.ess >= 1) & (h.ess <= 16 + 1e-9))


def test_new_points_alone_are_evaluated_to_reweight(problem):
    posterior, x, y = problem
    result = fs.SMC(posterior, 8, fs.DataAnnealing(sizes=[50, 200]), fs.HMC(1, step_size=0.01), 2).run(x, y)
    np.testing.assert_allclose(result.history.data_passes, [(50 + 50) / 200, (50 + 50 + 150 + 200) / 200])


def test_a_particle_without_a_finite_density_gets_weight_zero_and_is_counted(problem, poison_prior):
    posterior, x, y = problem
    poison_prior(posterior)
    smc = fs.SMC(posterior, 16, fs.FullBatch(), fs.HMC(2), 3, ess_threshold=0.0)
    states = list(smc.iterate(x, y))
    assert [state.history.last["non_finite"] for state in states] == [2, 0, 0]
    assert np.all(states[-1].weights[[3, 7]] == 0) and np.isclose(states[-1].weights.sum(), 1)
    assert any("2 particles" in warning for warning in states[-1].warnings)
    resampled = fs.SMC(posterior, 16, fs.FullBatch(), fs.HMC(2), 3, ess_threshold=1.0).run(x, y)
    assert np.all(np.isfinite(resampled.particles))


def test_all_particles_without_a_finite_density_end_the_run_with_the_last_good_state(problem):
    """An unadjusted move with a huge step loses every particle at the second iteration."""
    posterior, x, y = problem

    class Diverging(fs.HMC):
        def __call__(self, cloud, data, target, step_size, draw):
            return super().__call__(cloud, data, target, 1e30 if draw.iteration else 0.01, draw)

    smc = fs.SMC(posterior, 8, fs.FullBatch(), Diverging(2, step_size=0.01, adjusted=False), 3)
    with pytest.raises(fs.DegenerateError, match="all 8 particles") as error:
        smc.run(x, y)
    good = error.value.result
    assert len(good.history) == 1 and np.all(np.isfinite(good.particles))


def test_a_rejected_particle_turns_back_and_the_momentum_lasts(problem):
    """With steps that are all rejected the momentum is reversed and mixed with fresh numbers, move after move."""
    posterior, x, y = problem
    data, cloud, target = Data(x, y, posterior, 0), Cloud.from_prior(posterior, 9, 0, True), Target(0, len(x))
    cloud.observe(data, fs.annealing.PRIOR, target)
    move, before = fs.KineticLangevin(persistence=0.6), cloud.particles.copy()
    move(cloud, data, target, 1e4, Draw(0, 0))
    first = cloud.momentum.copy()
    outcome = move(cloud, data, target, 1e4, Draw(0, 1))
    assert outcome.acceptance < 1e-6
    np.testing.assert_array_equal(cloud.particles, before)
    fresh = fs.random.normal(before.shape, **Draw(0, 1).key(fs.random.Stream.MOMENTUM))
    np.testing.assert_allclose(cloud.momentum, -(0.6 * first + 0.8 * fresh), atol=1e-6)


@pytest.mark.parametrize("move", [fs.KineticLangevin(), fs.SGHMC(num_steps=1)])
def test_momentum_is_standard_normal_after_the_search_for_a_step(problem, move):
    """64 x 83 numbers: their mean square is 1 to 0.02, so 0.1 off has a probability below 1e-6."""
    posterior, x, y = problem
    data, cloud, target = (
        Data(x, y, posterior, 0),
        Cloud.from_prior(posterior, 64, 0, move.uses_gradient),
        Target(0, 20),
    )
    cloud.observe(data, PRIOR, target)
    step = StepSize(move)
    step.prepare(cloud, data, PRIOR, target, Draw(0, 0, 1))
    momentum = cloud.refresh(move.persistence, **Draw(0, 0).key(fs.random.Stream.MOMENTUM))
    assert abs(np.mean(momentum.astype(float) ** 2) - 1) < 0.1


def test_all_states_of_a_waste_free_chain_are_particles(problem):
    """Where nothing is accepted they are copies of the ancestor; where everything is, no two are alike."""
    posterior, x, y = problem
    for step_size, distinct in ((1e4, 4), (1e-4, 24)):
        move = fs.HMC(2, step_size=step_size, num_moves=3)
        smc = fs.SMC(posterior, 24, fs.FullBatch(), move, 1, waste_free=6, seed=1)
        result = smc.run(x[:2], y[:2])
        assert result.particles.shape[0] == 24 and result.history.distinct_ancestors[0] == 4
        assert len(np.unique(result.particles, axis=0)) == distinct
        np.testing.assert_allclose(result.weights, 1 / 24)
        assert result.history.resampled[0] and result.ess == pytest.approx(24)


def test_steps_are_adapted_along_waste_free_chains(problem):
    posterior, x, y = problem
    move = fs.HMC(5)
    result = fs.SMC(posterior, 256, fs.SmoothDataAnnealing(start=20), move, 20, waste_free=4).run(x, y)
    assert abs(result.history.acceptance[-8:].mean() - move.aim) < 0.12
    assert len(np.unique(result.history.step_size)) == 20


def test_the_work_of_waste_free_chains_is_counted_per_particle(problem):
    """Four chains of 16 particles make 3 x 2 moves of 5 steps each."""
    posterior, x, y = problem
    move = fs.HMC(5, step_size=0.01, num_moves=2)
    result = fs.SMC(posterior, 16, fs.FullBatch(), move, 3, waste_free=4).run(x, y)
    np.testing.assert_allclose(result.history.data_passes, 1 + 3 * 2 * 5 * np.arange(1, 4) * 4 / 16)


def test_one_waste_free_chain_is_a_chain_without_a_genealogy(problem):
    posterior, x, y = problem
    result = fs.SMC(posterior, 8, fs.FullBatch(), fs.HMC(2), 2, waste_free=8).run(x, y)
    assert np.isnan(result.log_evidence_error) and np.isfinite(result.log_evidence)
    assert any("collapsed to one ancestor" in warning for warning in result.warnings)


def test_roots_are_the_draws_from_the_prior(problem):
    posterior, x, y = problem
    result = fs.SMC(posterior, 32, fs.DataAnnealing(start=20), fs.HMC(3), 8, ess_threshold=1.0).run(x, y)
    roots = result.history.distinct_roots
    assert np.all(np.diff(roots) <= 0) and 1 <= roots[-1] < 32
    assert np.all(roots <= np.minimum.accumulate(result.history.distinct_ancestors))


def test_a_collapsed_run_says_so(problem):
    posterior, x, y = problem
    result = fs.SMC(posterior, 8, fs.FullBatch(), fs.HMC(2), 2).run(np.repeat(x, 20, axis=0), np.repeat(y, 20))
    assert result.history.distinct_ancestors[0] == 1
    assert any("collapsed to one ancestor" in warning for warning in result.warnings)


def test_states_are_left_alone_by_later_iterations(problem):
    posterior, x, y = problem
    states, copies = [], []
    for state in fs.SMC(posterior, 8, num_iterations=6).iterate(x, y):
        states.append(state)
        copies.append((state.particles.copy(), state.log_weights.copy(), len(state.history)))
    for state, (particles, log_weights, rows) in zip(states, copies, strict=True):
        np.testing.assert_array_equal(state.particles, particles)
        np.testing.assert_array_equal(state.log_weights, log_weights)
        assert len(state.history) == rows


def test_any_backend_serves_the_sampler(problem):
    """The reference, in float64 arithmetic, and the engine go the same way for a few steps."""
    posterior, x, y = problem
    runs = [
        fs.SMC(posterior, 8, fs.DataAnnealing(start=50), fs.HMC(2, step_size=0.01), 3, backend=b).run(x, y)
        for b in ("cpu", "reference")
    ]
    np.testing.assert_allclose(runs[0].particles, runs[1].particles, atol=1e-4)
    assert runs[0].log_evidence == pytest.approx(runs[1].log_evidence, abs=1e-2)


@pytest.mark.parametrize("move", [fs.HMC(2, adjusted=False), fs.RandomWalk()])
def test_a_forced_backend_serves_every_op(problem, monkeypatch, move):
    posterior, x, y = problem
    chosen, choose = set(), backends.choose

    def record(backend=None, device="cpu"):
        chosen.add(backend)
        return choose(backend, device)

    monkeypatch.setattr(backends, "choose", record)
    fs.SMC(posterior, 8, fs.LikelihoodTempering(), move, 2, ess_threshold=1.0, backend="reference").run(x, y)
    assert chosen == {"reference"}


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"num_particles": 0}, "num_particles is 0; it must be at least 1"),
        ({"num_particles": 8.5}, "num_particles is 8.5; it must be a whole number"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"num_iterations": 4.5}, "num_iterations is 4.5; it must be a whole number"),
        ({"resampling": "best"}, "resampling is 'best'; it must be one of systematic"),
        ({"ess_threshold": 1.5}, "ess_threshold is 1.5"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None; it must be a whole number from 0 to 2**64 - 1"),
        ({"annealing": lambda: fs.MiniBatch(20.5)}, "batch_size is 20.5; it must be a whole number"),
        ({"waste_free": 0}, "waste_free is 0; it must divide num_particles, 64"),
        ({"waste_free": 5}, "waste_free is 5; it must divide num_particles, 64"),
        ({"waste_free": 128}, "waste_free is 128; it must divide"),
        (
            {"waste_free": 2, "move": lambda: fs.HMC(2, adjusted=False)},
            "which does not accept or reject; waste-free SMC needs",
        ),
        ({"waste_free": 2, "move": lambda: fs.SGHMC()}, "move is SGHMC("),
        ({"backend": "tpu"}, "backend is 'tpu'"),
        ({"move": lambda: fs.HMC(0)}, "num_steps is 0"),
        ({"move": lambda: fs.HMC(step_size=-1)}, "step_size is -1"),
        ({"move": lambda: fs.MALA(target_acceptance=1.0)}, "target_acceptance is 1.0"),
        ({"move": lambda: fs.Langevin(num_moves=0)}, "num_moves is 0"),
        ({"move": lambda: fs.KineticLangevin(persistence=1.0)}, "persistence is 1.0; it must be at least 0"),
        ({"move": lambda: fs.SGHMC(persistence=-0.1)}, "persistence is -0.1"),
        ({"move": lambda: fs.SGHMC(batch_size=0)}, "batch_size is 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(problem, options, fragment):
    posterior, x, y = problem
    with pytest.raises(ValueError, match=r".") as error:
        fs.SMC(posterior, **{k: v() if callable(v) else v for k, v in options.items()}).run(x, y)
    assert fragment in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"annealing": "full"}, r"annealing is 'full'; it must be of the kind Annealing, as fs.FullBatch\(\) is"),
        ({"annealing": fs.FullBatch}, "annealing is <class .*FullBatch'>; it must be of the kind Annealing"),
        ({"move": "hmc"}, r"move is 'hmc'; it must be of the kind Move, as fs.HMC\(\) is"),
        ({"move": fs.HMC}, "move is <class .*HMC'>; it must be of the kind Move"),
        ({"posterior": fs.MLP([2, 3])}, "posterior is MLP.*; it must be of the kind Posterior"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_a_sentence(problem, options, sentence):
    with pytest.raises(TypeError, match=sentence):
        fs.SMC(**{"posterior": problem[0], **options})


@pytest.mark.parametrize("annealing", [None, fs.LikelihoodTempering(), fs.FullBatch(), fs.SmoothDataAnnealing(start=5)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_particles_that_all_have_no_density_end_the_run(annealing):
    rng = np.random.default_rng(0)
    x, y = (1e4 * rng.standard_normal((60, 3))).astype(np.float32), rng.poisson(2, 60)  # rates overflow
    with pytest.raises(fs.DegenerateError, match="all 16 particles have a density that is zero or not finite"):
        fs.SMC(fs.Posterior(fs.MLP([3, 1]), likelihood="poisson"), 16, annealing, fs.HMC()).run(x, y, progress=False)


def exponential(outputs, y):
    """Targets of rate 1 + output; there is no density where that is negative."""
    rate = 1 + outputs[..., 0]
    return torch.where(rate > 0, rate.abs().log() - rate * y, -torch.inf)


@pytest.mark.parametrize("move", [fs.HMC(5, target_acceptance=0.9), fs.KineticLangevin(3, num_moves=2)])
def test_particles_without_a_density_do_not_stop_the_others(move):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 1), np.float32)
    y = rng.exponential(1 / (2 + 0.3 * x[:, 0])).astype(np.float32)
    posterior = fs.Posterior(fs.MLP([1, 1]), likelihood=exponential)
    result = fs.SMC(posterior, 256, fs.SmoothDataAnnealing(start=1), move, 20).run(x, y, progress=False)
    assert result.history.non_finite[0] > 30
    assert result.history.step_size.min() > 1e-3


def test_few_particles_that_count_are_warned_of(problem):
    posterior, x, y = problem
    found = []
    for seed in range(10):
        result = fs.SMC(posterior, 64, fs.FullBatch(), fs.HMC(3), 2, seed=seed).run(x, y, progress=False)
        assert any("collapsed" in said or "was low" in said for said in result.warnings)
        found += [said for said in result.warnings if "was low" in said]
    assert "the effective sample size of the 64 particles was low at 1 of 2 iterations, " in found[0]
    unmoved = fs.SMC(posterior, 64, fs.FullBatch(), fs.HMC(3), 2, ess_threshold=0.0).run(x, y, progress=False)
    assert any("was low at 2 of 2 iterations" in said for said in unmoved.warnings)


def test_the_resampling_scheme_is_the_one_that_was_named(problem):
    posterior, x, y = problem
    ancestors = set()
    for resampling in ("systematic", "stratified", "multinomial", "residual"):
        smc = fs.SMC(posterior, 64, fs.DataAnnealing(start=5), fs.HMC(1), 9, resampling, 1.0)
        ancestors.add(smc.run(x, y, progress=False).genealogy[0].tobytes())
    assert len(ancestors) == 4


def test_stratified_runs_take_the_data_in_an_order_of_their_own(problem):
    posterior, x, y = problem
    move = fs.RandomWalk(step_size=0.01)
    first = {
        stratify: next(fs.SMC(posterior, 8, fs.DataAnnealing(start=5), move, 9, stratify=stratify).iterate(x, y))
        for stratify in (False, True)
    }
    for stratify, result in first.items():
        batch = Data(x, y, posterior, 0, stratify).batch(result.target)
        increment = posterior.log_likelihood(posterior.sample_prior(8), batch.x, batch.y)
        assert result.history.log_evidence[0] == pytest.approx(np.logaddexp.reduce(increment) - np.log(8), rel=1e-5)
    assert first[False].history.log_evidence[0] != first[True].history.log_evidence[0]


def test_another_engine_computes_in_the_same_precision(problem):
    posterior = fs.Posterior(problem[0].network, precision="medium")
    assert posterior.on("reference").precision == "medium"


def test_the_conditional_ess_is_of_weighted_particles(problem):
    cloud = Cloud.from_prior(problem[0], 6, 0, with_grad=False)
    weights, values = np.array([0.4, 0.3, 0.1, 0.1, 0.1, 0.0]), np.array([1.0, 2.0, 0.5, 3.0, 0.1, 9.0])
    with np.errstate(divide="ignore"):
        cloud.reweight(np.log(weights))
    expected = (weights @ values) ** 2 / (weights @ values**2)
    assert np.exp(cloud.log_conditional_ess(np.log(values))) == pytest.approx(expected)


def test_the_ess_of_an_iteration_is_the_smaller_of_before_and_after_its_moves(problem):
    posterior, x, y = problem
    move = fs.HMC(3, step_size=0.3, adjusted=False)
    states = list(fs.SMC(posterior, 32, fs.FullBatch(), move, 4, ess_threshold=1.0).iterate(x, y))
    after = np.array([state.ess for state in states])
    assert np.all(states[-1].history.ess <= after * (1 + 1e-6))
    np.testing.assert_allclose(states[-1].history.ess[1:], after[1:])  # before, there were no new data


def test_steps_shrink_by_the_root_of_the_data_that_join():
    step = StepSize(fs.HMC())
    step.value = 0.8
    step.rescale(Target(0, 100), Target(0, 400))
    assert step.value == pytest.approx(0.4)
    step.rescale(Target(0, 400), Target(0, 400))
    assert step.value == pytest.approx(0.4)
