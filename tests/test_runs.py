import numpy as np
import pytest

import fastsmc as fs


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    return fs.Posterior(fs.MLP([3, 4, 2])), x, (x[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def runs(problem):
    posterior, x, y = problem
    return fs.run_many(fs.SMC(posterior, 16, fs.DataAnnealing(start=20), fs.HMC(3), 4), x, y, (5, 6, 7), progress=False)


def test_each_run_is_that_of_its_seed(problem, runs):
    posterior, x, y = problem
    for seed, result in zip((5, 6, 7), runs.results, strict=True):
        alone = fs.SMC(posterior, 16, fs.DataAnnealing(start=20), fs.HMC(3), 4, seed=seed).run(x, y, progress=False)
        np.testing.assert_array_equal(result.particles, alone.particles)
        assert result.log_evidence == alone.log_evidence


def test_the_sampler_keeps_its_seed(problem):
    posterior, x, y = problem
    smc = fs.SMC(posterior, 4, num_iterations=1, seed=9)
    fs.run_many(smc, x, y, [1], progress=False)
    assert smc.seed == 9


def test_evidence_is_the_mean_of_the_runs(runs):
    each = np.exp([r.log_evidence for r in runs.results])
    assert runs.log_evidence == pytest.approx(np.log(each.mean()))
    assert runs.log_evidence_error == pytest.approx(each.std(ddof=1) / np.sqrt(3) / each.mean())


def test_all_particles_together_are_weighted_by_evidence(problem, runs):
    _, x, _ = problem
    whole = runs.combined()
    assert whole.particles.shape == (48, runs.results[0].particles.shape[1])
    assert whole.weights.sum() == pytest.approx(1)
    shares = whole.weights.reshape(3, 16).sum(axis=1)
    each = np.exp([r.log_evidence for r in runs.results])
    np.testing.assert_allclose(shares, each / each.sum())
    apart = np.array([r.predict_proba(x) for r in runs.results])
    np.testing.assert_allclose(whole.predict_proba(x), np.einsum("r,rnc->nc", shares, apart), atol=1e-6)
    assert whole.log_evidence == pytest.approx(runs.log_evidence)
    assert whole.log_evidence_error == pytest.approx(runs.log_evidence_error)
    assert runs.results[-1].log_evidence != whole.log_evidence  # which it keeps


def test_without_evidence_runs_count_alike(problem):
    posterior, x, y = problem
    runs = fs.run_many(fs.SMC(posterior, 8, fs.MiniBatch(20), fs.HMC(2), 2), x, y, (0, 1), progress=False)
    assert runs.log_evidence is None and runs.log_evidence_error is None
    np.testing.assert_allclose(runs.combined().weights.reshape(2, 8).sum(axis=1), 0.5)


def test_one_run_has_no_scatter(problem):
    posterior, x, y = problem
    runs = fs.run_many(fs.SMC(posterior, 8, fs.FullBatch(), fs.HMC(2), 2), x, y, [3], progress=False)
    assert runs.log_evidence == runs.results[0].log_evidence and runs.log_evidence_error is None


def test_checkpoints_lie_apart(problem, tmp_path):
    posterior, x, y = problem
    fs.run_many(fs.SMC(posterior, 4, num_iterations=1), x, y, (0, 1), progress=False, checkpoint=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


def test_a_plan_and_numbers_of_numpy_s_are_kept(problem, tmp_path):
    _, x, y = problem
    posterior = fs.Posterior(fs.MLP([x.shape[1], 3]), fs.Normal(np.float32(0.5)))
    smc = fs.SMC(posterior, np.int64(4), fs.FullBatch(), fs.HMC(np.int32(2)), np.int64(2))
    plan = fs.Checkpoint(tmp_path / "runs", iterations=1)
    runs = fs.run_many(smc, x, y, np.arange(2), progress=False, checkpoint=plan)
    assert sorted(p.name for p in plan.folder.iterdir()) == ["0", "1"]
    for folder, result in zip(("0", "1"), runs.results, strict=True):
        resumed = fs.resume(plan.folder / folder, progress=False)
        assert np.array_equal(resumed.particles, result.particles) and resumed.posterior.prior.scale == 0.5


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_that_make_no_sense_are_refused(problem, seeds):
    posterior, x, y = problem
    with pytest.raises(ValueError, match="seeds is"):
        fs.run_many(fs.SMC(posterior, 4), x, y, seeds)


def test_states_of_one_target_are_recycled_by_their_ess(problem):
    posterior, x, y = problem
    move = fs.HMC(3, step_size=0.1, adjusted=False)  # whose weights change while the target does not
    smc = fs.SMC(posterior, 16, fs.SmoothDataAnnealing(start=20, full=0.5), move, 8, ess_threshold=1.0, seed=2)
    states = list(smc.iterate(x, y))
    last = [s for s in states if s.target.is_posterior(len(x))]
    assert 1 < len(last) < len(states)
    whole = fs.recycle(last)
    sizes = np.array([s.ess for s in last])
    assert sizes.max() > 1.05 * sizes.min()
    np.testing.assert_allclose(whole.weights.reshape(len(last), 16).sum(axis=1), sizes / sizes.sum())
    assert np.array_equal(whole.particles[-16:], last[-1].particles) and whole.log_evidence == last[-1].log_evidence
    with pytest.raises(ValueError, match="different targets; there must be one"):
        fs.recycle(states)
    with pytest.raises(ValueError, match="0 different targets"):
        fs.recycle([])
