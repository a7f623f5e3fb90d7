"""Particles that processes share out: the bits of one process, whoever has which, and whoever dies."""

import os
import pickle
import signal
import time
from datetime import timedelta

import numpy as np
import pytest
from processes import together
from small_runs import data_of, posterior_of

import fastsmc as fs
from fastsmc import ranks
from fastsmc.ranks import Alone, RankError, Ranks, group_size

RUNS = {
    "HMC": {"annealing": fs.DataAnnealing(sizes=[10, 20]), "move": fs.HMC(3), "num_iterations": 6},
    "HMC, as many moves as it takes, weighted": {
        "annealing": fs.SmoothDataAnnealing(start=10, likelihood_scale="full"),
        "move": fs.HMC(2, adjusted=False, num_moves=None),
        "num_iterations": 5,
        "resampling": "multinomial",
    },
    "SGHMC": {
        "annealing": fs.MiniBatch(20),
        "move": fs.SGHMC(num_steps=2, batch_size=7, sharing=3),
        "num_iterations": 6,
    },
    "SGHMC, weighted": {
        "annealing": fs.DataAnnealing(sizes=[20]),
        "move": fs.SGHMC(num_steps=2, batch_size=7, weighted=True, step_size=0.02),
        "num_iterations": 4,
        "ess_threshold": 1.0,
    },
    "defaults": {"annealing": fs.AdaptiveDataAnnealing(start=8, settle=2)},
    "tempering, random walk": {"annealing": fs.LikelihoodTempering(), "move": fs.RandomWalk(num_moves=3)},
}
"""Every move and scheme, with particles that no number of ranks divides."""
PARTICLES = 22


def sampler(name, num_particles=PARTICLES, **options):
    return fs.SMC(posterior_of(), num_particles, seed=3, **RUNS[name], **options)


def numbers(result):
    """What must be the same to the bit; seconds are the clock's."""
    columns = {name: column for name, column in result.history.items() if name != "seconds"}
    names = ("particles", "log_weights", "genealogy", "log_evidence", "warnings", "target")
    return columns | {name: getattr(result, name) for name in names}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)
    return True


def run_all(folder):
    """Every run on this rank, and what it has sent."""
    found = {}
    for name in RUNS:
        smc = sampler(name, distributed=True)
        found[name] = numbers(smc.run(*data_of(), progress=False)), smc.ranks.exchanged
    (folder / str(smc.ranks.index)).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def alone():
    return {name: numbers(sampler(name).run(*data_of(), progress=False)) for name in RUNS}


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_compute_the_bits_of_one_process(tmp_path, count, alone):
    assert together(count, run_all, tmp_path) == [0] * count
    of_ranks = [pickle.loads((tmp_path / str(rank)).read_bytes()) for rank in range(count)]
    for name in RUNS:
        assert all(same(found[name][0], alone[name]) for found in of_ranks)
        sent = sum(found[name][1] for found in of_ranks)
        assert sent == moved(alone[name], count)
    assert sum(moved(alone[name], count) for name in RUNS) > 20


def moved(run, count):
    """How many particles a rank has to have of another's, once for each such rank, over all iterations."""
    size = group_size(PARTICLES)
    groups = -(-PARTICLES // size)
    edges = [min(groups * rank // count * size, PARTICLES) for rank in range(count + 1)]
    total = 0
    for ancestors in run["genealogy"]:
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            total += len({a for a in ancestors[begin:end] if not begin <= a < end})
    return total
