"""Runs that go on from a posterior when data are added: exact, as runs over all data at once are."""

import pytest
from conjugate import assert_exact, errors

import fastsmc as fs

MOVE = fs.HMC(num_steps=5, num_moves=2)
FIRST = fs.AdaptiveDataAnnealing(start=8, settle=1)


class Continued:
    """A sampler that is given three eighths of the data, then all of them; with half the particles at first."""

    def __init__(self, posterior, seed, annealing, num_iterations):
        self.first = fs.SMC(posterior, 128, FIRST, MOVE, seed=seed)
        self.second = fs.SMC(posterior, 256, annealing, MOVE, num_iterations, seed=seed)

    def run(self, x, y, progress):
        old = len(x) * 3 // 8
        earlier = self.first.run(x[:old], y[:old], progress)
        return self.second.run(x, y, progress, initial=earlier)


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("annealing", "num_iterations"),
    [
        (fs.AdaptiveDataAnnealing(settle=1), None),
        (fs.DataAnnealing(start=8, likelihood_scale="full"), 8),
    ],
)
def test_old_then_new_data_give_the_posterior_and_the_evidence_of_all(annealing, num_iterations):
    assert_exact(*errors(32, lambda posterior, seed: Continued(posterior, seed, annealing, num_iterations)))
