"""Waste-free SMC against closed forms: any length of the chains, every move that it takes.

As in the standard algorithm, Z_hat is unbiased. Each check compares the mean of 30 independent runs with the truth;
all seeds are fixed, and under normality of the means the probability that a right sampler fails one of its seven
comparisons is below 1e-5.
"""

import pytest
from conjugate import assert_exact, runs

import fastsmc as fs

pytestmark = pytest.mark.statistics

DATA = 20
FIXED_HMC = fs.HMC(num_steps=4, step_size=0.15)
STEPS = fs.DataAnnealing(start=3)

MOVES = {
    "random walk": fs.RandomWalk(step_size=0.3, num_moves=3),
    "mala": fs.MALA(step_size=0.4, num_moves=2),
    "hmc, adapted": fs.HMC(num_steps=4),
    "kinetic langevin": fs.KineticLangevin(step_size=0.3, num_steps=2),
}


@pytest.mark.parametrize("length", [2, 4, 16, 64])
def test_any_length_of_the_chains(length):
    assert_exact(*runs(DATA, STEPS, FIXED_HMC, 8, waste_free=length))


@pytest.mark.parametrize("move", MOVES)
def test_every_move(move):
    assert_exact(*runs(DATA, STEPS, MOVES[move], 8, waste_free=8))


@pytest.mark.parametrize(
    "annealing",
    [
        fs.DataAnnealing(start=3, likelihood_scale="full"),
        fs.LikelihoodTempering(ess=0.7),
        fs.AdaptiveDataAnnealing(start=3, ess=0.8, growth=1.0, settle=5),
    ],
    ids=["data annealing, scaled", "adaptive tempering", "adaptive data annealing, over bridges"],
)
def test_every_kind_of_target(annealing):
    assert_exact(*runs(DATA, annealing, FIXED_HMC, 40, waste_free=4))


@pytest.mark.parametrize("resampling", ["stratified", "multinomial", "residual"])
def test_every_resampling_scheme(resampling):
    assert_exact(*runs(DATA, STEPS, FIXED_HMC, 6, resampling=resampling, waste_free=4))
