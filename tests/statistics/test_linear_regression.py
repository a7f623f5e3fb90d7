"""Evidence and posterior against closed forms: every scheme, every move, any schedule.

Each check compares the mean of 30 independent runs with the truth; all seeds are fixed, and under normality of the
means the probability that a right sampler fails one of its seven comparisons is below 1e-5.
"""

from math import lgamma, pi

import numpy as np
import pytest
from conjugate import (
    RUNS,
    T_LIMIT,
    assert_exact,
    assert_moments,
    closed_form,
    problem,
    runs,
    t_statistic,
)
from schemes import SCHEMES

import fastsmc as fs
from fastsmc.annealing import PRIOR, Target
from fastsmc.batches import Data
from fastsmc.cloud import Cloud
from fastsmc.moves import Draw

pytestmark = pytest.mark.statistics

DATA = 20
FIXED_HMC = fs.HMC(num_steps=4, step_size=0.15)

MOVES = {
    "random walk": fs.RandomWalk(step_size=0.3, num_moves=3),
    "langevin": fs.Langevin(step_size=0.15, num_moves=2),
    "mala": fs.MALA(step_size=0.4, num_moves=2),
    "hmc": FIXED_HMC,
    "hmc, unadjusted": fs.HMC(num_steps=4, step_size=0.1, adjusted=False),
    "kinetic langevin": fs.KineticLangevin(step_size=0.3, num_steps=2, num_moves=2),
    "kinetic langevin, unadjusted": fs.KineticLangevin(step_size=0.1, num_steps=2, num_moves=2, adjusted=False),
    "hmc, preconditioned": fs.HMC(num_steps=3, step_size=0.6, precondition=True),
    "kinetic langevin, preconditioned": fs.KineticLangevin(step_size=0.6, num_steps=2, num_moves=2, precondition=True),
    "hmc, as many moves as it takes": fs.HMC(num_steps=2, step_size=0.2, num_moves=None),
    "sghmc, whole batches": fs.SGHMC(step_size=0.5, num_moves=2),
    "sghmc, weighted": fs.SGHMC(step_size=0.06, num_steps=3, batch_size=10, weighted=True, precondition=False),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme):
    annealing, iterations = SCHEMES[scheme]
    assert_exact(*runs(DATA, annealing, FIXED_HMC, iterations))


@pytest.mark.parametrize("likelihood_scale", ["full", "none"])
def test_mini_batches_keep_the_moments(likelihood_scale):
    """Moments only: between disjoint batches the ratio of likelihoods is unbounded, and Z_hat has no variance."""
    annealing = fs.MiniBatch(10, every=2, likelihood_scale=likelihood_scale)
    _, means, seconds = runs(DATA, annealing, FIXED_HMC, 8)
    assert_moments(means, seconds)


@pytest.mark.parametrize("move", MOVES)
def test_every_move(move):
    assert_exact(*runs(DATA, fs.DataAnnealing(start=3, likelihood_scale="none"), MOVES[move], 8))


@pytest.mark.parametrize("move", ["hmc", "hmc, unadjusted", "langevin", "kinetic langevin"])
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_any_number_of_data_steps(steps, move):
    sizes = [DATA * (k + 1) // steps for k in range(steps)]
    assert_exact(*runs(DATA, fs.DataAnnealing(sizes=sizes), MOVES[move], 20))


@pytest.mark.parametrize("resampling", ["systematic", "stratified", "multinomial", "residual"])
def test_every_resampling_scheme_at_every_iteration(resampling):
    assert_exact(*runs(DATA, fs.DataAnnealing(start=3), FIXED_HMC, 6, resampling=resampling, ess_threshold=1.0))


def test_no_resampling_is_importance_sampling():
    assert_exact(*runs(6, fs.DataAnnealing(start=2), FIXED_HMC, 4, num_particles=1024, ess_threshold=0.0))


@pytest.mark.parametrize(
    "annealing", [None, fs.AdaptiveDataAnnealing(start=3, settle=5)], ids=["all at once", "in blocks"]
)
def test_the_defaults(annealing):
    assert_exact(*runs(DATA, annealing, None, None))


ADAPTED = {
    "hmc": fs.HMC(num_steps=4),
    "hmc, unadjusted": fs.HMC(adjusted=False, precondition=True),
    "kinetic langevin, unadjusted": fs.KineticLangevin(5, num_moves=2, adjusted=False, precondition=True),
}


@pytest.mark.parametrize("move", ADAPTED)
def test_adapted_steps_keep_the_moments(move):
    assert_exact(*runs(DATA, fs.DataAnnealing(start=3), ADAPTED[move], 12))


def test_sghmc_is_nearly_right_for_short_steps_and_visibly_wrong_for_long_ones():
    """Unweighted, the noise of its forces heats the particles: second moments are too large by a share that grows."""
    scheme = fs.DataAnnealing(start=3)
    excess = {}
    for step_size, moves in ((0.03, 12), (0.06, 6)):
        move = fs.SGHMC(
            step_size=step_size, num_steps=10, batch_size=4, persistence=0.9, num_moves=moves, precondition=False
        )
        excess[step_size] = runs(DATA, scheme, move, 6, num_particles=32)[2].mean() - 1
    assert abs(excess[0.03]) < 0.15 < 0.4 < excess[0.06]


@pytest.mark.parametrize("options", [{"ess_threshold": 1.0}, {}, {"waste_free": 4}], ids=str)
def test_the_genealogy_tells_the_variance_of_the_evidence(options):
    """Under multinomial resampling the mean estimate over 400 runs is the variance over them.

    Were they normal, the variance of 400 numbers would be known to 7 %, and 40 % off had a probability below 1e-6.
    """
    posterior, x, y = problem(DATA)
    ratios, estimates = [], []
    for seed in range(400):
        smc = fs.SMC(posterior, 256, fs.DataAnnealing(start=3), FIXED_HMC, 5, "multinomial", seed=seed, **options)
        result = smc.run(x, y, progress=False)
        ratios.append(np.exp(result.log_evidence - closed_form(posterior, x, y, seed, result.target)[0]))
        estimates.append(result.log_evidence_error**2)
    assert np.mean(estimates) == pytest.approx(np.var(ratios), rel=0.4)
    assert 0.01 < np.var(ratios) < 0.5


def test_weighting_moved_particles_by_the_ratio_of_targets_is_caught():
    """The trap of method.md: move under the new target first, then weight by new over old where the particle went."""
    posterior, x, y = problem(DATA)
    ratios = []
    for seed in range(RUNS):
        data, cloud = Data(x, y, posterior, seed), Cloud.from_prior(posterior, 256, seed, with_grad=True)
        log_evidence, previous = 0.0, PRIOR
        for step, target in enumerate((Target(0, 10), Target(0, 20))):
            cloud.observe(data, previous, target)
            FIXED_HMC(cloud, data, target, FIXED_HMC.step_size, Draw(seed, step))
            new_rows = data.rows(previous.stop, target.stop)
            log_evidence += cloud.reweight(posterior.log_likelihood(cloud.particles, *new_rows[:2]))[0]
            cloud.resample(len(cloud.particles), "systematic", seed, step)
            previous = target
        ratios.append(np.exp(log_evidence - closed_form(posterior, x, y, seed, target)[0]))
    assert t_statistic(np.log(ratios), 0.0) > T_LIMIT


def test_evidence_is_unbiased_with_few_particles():
    """E[Z_hat] = Z holds for any P; 400 runs of 8 particles, |t| beyond 5.0 has probability below 1e-6."""
    posterior, x, y = problem(6)
    ratios = []
    for seed in range(400):
        result = fs.SMC(posterior, 8, fs.DataAnnealing(start=2), FIXED_HMC, 4, seed=seed).run(x, y, progress=False)
        ratios.append(np.exp(result.log_evidence - closed_form(posterior, x, y, seed, result.target)[0]))
    assert abs(t_statistic(ratios, 1.0)) < 5.0
    assert abs(np.mean(ratios) - 1) < 0.1  # and the test has the power to see a bias of that size


def test_the_limit_is_the_quantile_it_claims_to_be():
    """The tail of Student's t at T_LIMIT with 29 degrees of freedom, by quadrature of its density."""
    t = np.linspace(T_LIMIT, T_LIMIT + 200, 2_000_001)
    density = np.exp(lgamma(15) - lgamma(14.5) - 0.5 * np.log(29 * pi)) * (1 + t**2 / 29) ** -15
    tail = np.sum((density[1:] + density[:-1]) / 2) * (t[1] - t[0])
    assert 0.8e-6 < 2 * tail < 1.2e-6
