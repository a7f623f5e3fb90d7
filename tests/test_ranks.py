"""Particles that processes share out: the bits of one process, whoever has which, and whoever dies."""

import os
import pickle
import signal
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import together
from small_runs import data_of, posterior_of

import fastsmc as fs
from fastsmc import backends, cli, ranks
from fastsmc import sampler as samplers
from fastsmc.ranks import RankError, group_size

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
        for begin, end in pairwise(edges):
            total += len({a for a in ancestors[begin:end] if not begin <= a < end})
    return total


WAIT = 3
"""Seconds that the ranks of these tests wait for one another."""
LOSES = "defaults"


def kept(folder):
    """Iterations of the last state of a run; none at the instant in which it is replaced."""
    try:
        return len(fs.load(folder / "run" / "last.safetensors").history)
    except FileNotFoundError:
        return 0


def lose(folder, victim, how):
    """Go on with a run until a rank is lost, and what the others have to say of that."""
    ranks.TIMEOUT = timedelta(seconds=WAIT)
    me = int(os.environ["RANK"])
    (folder / f"pid{me}").write_text(str(os.getpid()))

    def callback(result):
        if len(result.history) == 4:
            callback.since = time.monotonic()
            if me == victim:
                while kept(folder) < 3:  # which is written beside the run
                    time.sleep(0.01)
                os.kill(os.getpid(), how)

    try:
        fs.resume(folder / "run", distributed=True, progress=False, callback=callback)
    except RankError as error:
        (folder / f"said{me}").write_text(f"{time.monotonic() - callback.since:.3f} {error}")
        if how == signal.SIGSTOP:
            os.kill(int((folder / f"pid{victim}").read_text()), signal.SIGKILL)


def go_on(folder):
    result = fs.resume(folder / "run", distributed=True, progress=False)
    (folder / f"end{os.environ['RANK']}").write_bytes(pickle.dumps(numbers(result)))


class StopError(Exception):
    """What ends a run from its callback."""


def stop(result):
    if len(result.history) == 2:
        raise StopError


@pytest.mark.parametrize(
    ("count", "victim", "how", "words", "others"),
    [
        (3, 1, signal.SIGKILL, "rank 1 of 3 has died or hangs; the run goes on from its last checkpoint", 2),
        (2, 0, signal.SIGKILL, "rank 0 of 2, or what had started it, has died; the run goes on", 1),
        (2, 1, signal.SIGSTOP, "rank 1 of 2 has died or hangs", 3),
    ],
)
def test_a_lost_rank_stops_the_others_and_the_run_goes_on(tmp_path, alone, count, victim, how, words, others):
    keep = fs.Checkpoint(tmp_path / "run", iterations=1)
    with pytest.raises(StopError):
        sampler(LOSES).run(*data_of(), False, keep, stop)
    codes = together(count, lose, tmp_path, victim, how)
    assert codes == [-signal.SIGKILL if rank == victim else 0 for rank in range(count)]
    for rank in set(range(count)) - {victim}:
        seconds, said = (tmp_path / f"said{rank}").read_text().split(maxsplit=1)
        assert said.startswith(words)
        assert float(seconds) < WAIT + 8
    assert kept(tmp_path) >= 3
    assert together(others, go_on, tmp_path) == [0] * others
    for rank in range(others):
        assert same(pickle.loads((tmp_path / f"end{rank}").read_bytes()), alone[LOSES])


def refused(folder):
    said = []
    for make in (
        lambda: sampler("HMC", 8, distributed=True),
        lambda: sampler("HMC", distributed=True, waste_free=2),
        lambda: fs.SMC(posterior_of(), PARTICLES, move=fs.HMC(1, False, lkernel="gaussian"), distributed=True),
        lambda: fs.resume(folder / "run", distributed=True),
    ):
        with pytest.raises(ValueError, match=r".") as error:
            make()
        said.append(str(error.value))
    (folder / f"said{os.environ['RANK']}").write_text("\n".join(said))


def test_what_ranks_cannot_share_is_refused_in_a_sentence(tmp_path):
    fs.PersistentSMC(posterior_of(), 4, num_iterations=1).run(*data_of(), False, tmp_path / "run")
    assert together(3, refused, tmp_path) == [0] * 3
    few, waste_free, gaussian, persistent = (tmp_path / "said2").read_text().splitlines()
    assert "num_particles is 8, but there are 3 ranks; it must be more particles, or at most 2 ranks" in few
    assert "waste_free is 2; it must be 1 where ranks share" in waste_free
    assert "whose L-kernel needs all particles" in gaussian
    assert "the run is of PersistentSMC" in persistent


def test_processes_that_nobody_started_as_ranks_are_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK is not in the environment; the processes must be started by torchrun"):
        sampler("HMC", distributed=True)


def test_a_rank_has_its_own_device(unmirrored, monkeypatch):
    """The card that joining makes the current one is what "cuda" means from then on, in this run and in later ones."""
    current = [0]

    class Joined(ranks.Alone):
        def __init__(self, num_particles):
            current[0] += 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(backends.Backend, "available", lambda backend: (True, ""))
    triton = backends.Backend("triton", "cuda", "fastsmc.metrics", tensors=True)
    monkeypatch.setitem(backends.BACKENDS, "triton", triton)
    monkeypatch.setattr(samplers, "Ranks", Joined)
    for rank in (1, 2):
        smc = sampler("HMC", device="cuda", backend="triton", distributed=True)
        memory = smc.posterior.on(device="cuda").memory
        assert memory._device == torch.device("cuda", rank)


def train(folder):
    """``fastsmc train`` as torchrun starts it, and what this rank prints."""
    os.chdir(folder)
    outputs = ["--out", "end.safetensors", "--json", "end.json", "--log", "end.log"]
    with open(f"printed{os.environ['RANK']}", "w") as printed, redirect_stdout(printed), redirect_stderr(printed):
        assert cli.main(["train", "data.npz", *TINY, *outputs]) == 0


TINY = ["--hidden", "4", "--particles", "9", "--iterations", "4", "--scheme", "smooth", "--move", "hmc", "--quiet"]


def test_the_command_shares_particles_and_the_first_rank_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **dict(zip("xy", data_of(), strict=True)))
    assert together(2, train, tmp_path) == [0, 0]
    assert (tmp_path / "printed1").read_text() == ""
    assert "particles: end.safetensors" in (tmp_path / "printed0").read_text()
    assert {path.name for path in tmp_path.glob("end*")} == {"end.safetensors", "end.json", "end.log"}
    assert cli.main(["train", "data.npz", *TINY, "--out", "alone.safetensors"]) == 0
    assert same(*(numbers(fs.load(name)) for name in ("end.safetensors", "alone.safetensors")))


def share_data(folder):
    """Which file the data of this rank are in, and whether all of it is gone from the folder."""
    smc = sampler("HMC", distributed=True)
    made = []

    def make():
        made.append(os.getpid())
        return np.arange(12.0)

    array = smc.ranks.once_per_host(make)
    assert np.array_equal(array, np.arange(12.0))
    places = {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if "fastsmc-" in line}
    smc.ranks.numbers(0)
    left = [path for path in ranks.SHARED.glob("fastsmc-*") if path.stem == f"fastsmc-{os.getpid()}"]
    (folder / f"found{smc.ranks.index}").write_bytes(pickle.dumps((len(made), places, left)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_ranks_of_a_host_have_the_data_in_memory_once(tmp_path):
    assert together(3, share_data, tmp_path) == [0] * 3
    found = [pickle.loads((tmp_path / f"found{rank}").read_bytes()) for rank in range(3)]
    assert [made for made, _, _ in found] == [1, 0, 0]
    assert len(found[0][1]) == 1 and all(places == found[0][1] and left == [] for _, places, left in found)
