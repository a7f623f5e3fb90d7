"""Runs that end before their time, by errors, by kill -9 or in a file that is torn, and go on to the same bits."""

import json
import os

import numpy as np
import pytest
import torch
from small_runs import data_of, posterior_of, same, sampler
from torch import nn

import bench.kills
import fastsmc as fs
from fastsmc import checkpoint
from fastsmc.checkpoint import LAST, PREVIOUS, RUN
from fastsmc.moves import HMC


class StopError(Exception):
    """What ends a run from its callback."""


def stop_after(iterations):
    def callback(result):
        if len(result.history) == iterations:
            raise StopError

    return callback


def network(**options):
    return fs.SMC(posterior_of(), num_particles=8, **options)


def heavy_tails():
    prior = {"*.bias": fs.StudentT(0.5, df=3), "*": fs.Laplace(fs.HalfNormal(1.0))}
    return fs.Posterior(fs.MLP([2, 4, 3], "tanh"), prior)


RUNS = {
    "data annealing, HMC": lambda: sampler(),
    "mini-batches, SGHMC": lambda: network(
        annealing=fs.MiniBatch(20), move=fs.SGHMC(num_steps=2, batch_size=7), num_iterations=6
    ),
    "adaptive, kinetic Langevin with a preconditioner": lambda: network(
        annealing=fs.AdaptiveDataAnnealing(start=8, settle=2), move=fs.KineticLangevin(num_steps=2, precondition=True)
    ),
    "tempering, random walk": lambda: network(annealing=fs.LikelihoodTempering(), move=fs.RandomWalk(num_moves=3)),
    "waste-free": lambda: sampler(waste_free=4, stratify=True),
    "defaults": lambda: fs.SMC(posterior_of(), 8, fs.AdaptiveDataAnnealing(start=10, settle=1), seed=3),
    "persistent": lambda: fs.PersistentSMC(posterior_of(), 8, fs.MALA(num_moves=2)),
    "priors with sampled scales": lambda: fs.SMC(heavy_tails(), 8, fs.FullBatch(), fs.HMC(2), 5),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_run_goes_on_to_the_same_bits(tmp_path, name, kind):
    x, y = map(kind, data_of())
    weights = None if "adaptive" in name else np.random.default_rng(0).integers(0, 3, len(x))
    whole = RUNS[name]().run(x, y, progress=False, weights=weights)
    for after in {1, min(3, len(whole.history)), len(whole.history)}:
        keep = fs.Checkpoint(tmp_path / str(after), iterations=1)
        with pytest.raises(StopError):
            RUNS[name]().run(x, y, False, keep, stop_after(after), weights=weights)
        seen = []
        resumed = fs.resume(keep.folder, progress=False, callback=seen.append)
        assert type(resumed.particles) is type(whole.particles)
        assert same_but_time(resumed, whole)
        assert len(seen) == len(whole.history) - after
        assert same_but_time(fs.resume(keep.folder, progress=False), whole)  # once more: nothing is left to do


def test_a_folder_holds_the_whole_sampler(tmp_path):
    posterior = fs.Posterior(fs.MLP([2, 40, 3]), fs.Normal(2.0), precision="medium")
    smc = fs.SMC(posterior, 8, fs.FullBatch(), fs.HMC(2), 3, "residual", 0.75, stratify=True, seed=9)
    with pytest.raises(StopError):
        smc.run(*data_of(), False, fs.Checkpoint(tmp_path, iterations=1), stop_after(1))
    made, *_ = checkpoint.opened(tmp_path, None, None, None, None, dict.fromkeys(checkpoint.PARTS), False)
    for name in ("num_particles", "annealing", "move", "num_iterations", "resampling", "ess_threshold", "seed"):
        assert getattr(made, name) == getattr(smc, name)
    assert made.stratify and made.waste_free == 1
    for name in ("network", "prior", "likelihood", "precision"):
        assert getattr(made.posterior, name) == getattr(posterior, name)


def test_other_weights_of_the_data_are_refused(tmp_path):
    x, y = data_of()
    weights = np.arange(len(x)) % 3
    with pytest.raises(StopError):
        sampler().run(x, y, False, fs.Checkpoint(tmp_path, iterations=1), stop_after(1), weights=weights)
    for others in (weights + 1, np.roll(weights, 1)):
        with pytest.raises(ValueError, match="are not the data of the run"):
            fs.resume(tmp_path, x, y, weights=others)
    assert len(fs.resume(tmp_path, x, y, weights=weights, progress=False).history) == 6


def same_but_time(resumed, whole):
    """Of results that came by different ways: the seconds differ, and the kind of arrays."""
    assert np.all(np.diff(resumed.history.seconds) > 0)
    for name in whole.history:
        assert name == "seconds" or np.array_equal(resumed.history[name], whole.history[name], equal_nan=True), name
    pairs = [(getattr(resumed, name), getattr(whole, name)) for name in ("particles", "log_weights")]
    pairs += zip(resumed.genealogy or (), whole.genealogy or (), strict=True)
    assert all(np.array_equal(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs)
    names = ("target", "num_data", "warnings", "log_evidence", "started_from", "interrupted")
    return all(getattr(resumed, name) == getattr(whole, name) for name in names)


def test_a_run_that_continued_another_goes_on(tmp_path):
    x, y = data_of()
    earlier = fs.SMC(posterior_of(), 8, fs.AdaptiveDataAnnealing(start=8, settle=1)).run(x[:25], y[:25], False)
    smc = fs.SMC(posterior_of(), 8, fs.AdaptiveDataAnnealing(settle=2), seed=1)
    whole = smc.run(x, y, False, initial=earlier)
    with pytest.raises(StopError):
        smc.run(x, y, False, fs.Checkpoint(tmp_path, iterations=1), stop_after(2), initial=earlier)
    assert same_but_time(fs.resume(tmp_path, progress=False), whole)


def test_a_memory_map_is_found_in_its_file_again(tmp_path):
    x, y = data_of()
    path = tmp_path / "x.npy"
    np.save(path, np.concatenate([x[:3], x]))
    mapped = np.load(path, mmap_mode="r")[3:]
    smc = sampler(move=fs.SGHMC(num_steps=2, batch_size=6))
    whole = smc.run(mapped, y, progress=False)
    with pytest.raises(StopError):
        smc.run(mapped, y, False, fs.Checkpoint(tmp_path / "run", iterations=1), stop_after(2))
    assert same_but_time(fs.resume(tmp_path / "run", progress=False), whole)
    changed = np.load(path, mmap_mode="r+")
    changed[20] += 1
    changed.flush()
    with pytest.raises(ValueError, match="are not the data of the run"):
        fs.resume(tmp_path / "run")


class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Mine(HMC):
    """A move that no folder knows."""


def normal(outputs, y):
    return torch.distributions.Normal(outputs, 1.0).log_prob(y[:, None]).sum(-1)


def test_what_a_folder_cannot_hold_must_be_given(tmp_path):
    x, y = data_of()
    torch.manual_seed(0)
    net = fs.from_torch(nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    post = fs.Posterior(net, likelihood=normal)
    smc = fs.SMC(post, 4, fs.FullBatch(), Mine(2), 4)
    whole = smc.run(Pairs(x, y), progress=False)
    with pytest.raises(StopError):
        smc.run(Pairs(x, y), None, False, fs.Checkpoint(tmp_path, iterations=1), stop_after(2))

    def refused(words, **given):
        with pytest.raises(ValueError, match=words):
            fs.resume(tmp_path, **given)

    refused("its network is a TorchNetwork, which a file cannot hold; it must be given to load as network=")
    refused("its likelihood is a Custom", network=net)
    refused("sampler is None, and the folder cannot make it: its move is a Mine", network=net, likelihood=normal)
    refused("x is None, and the folder .* does not hold it; it must be given to resume", sampler=smc)
    refused("are not the data of the run", sampler=smc, x=Pairs(x[::-1].copy(), y))
    assert same_but_time(fs.resume(tmp_path, Pairs(x, y), sampler=smc, progress=False), whole)


def stopped(folder, after=3):
    with pytest.raises(StopError):
        sampler().run(*data_of(), False, fs.Checkpoint(folder, iterations=1), stop_after(after))


def test_what_a_folder_holds_is_not_overridden(tmp_path):
    stopped(tmp_path)
    gaussian = fs.Posterior(sampler().posterior.network, fs.Normal("fan_in"), "gaussian")
    for given in ({"likelihood": "gaussian"}, {"sampler": fs.SMC(gaussian, 8)}):
        with pytest.raises(
            ValueError, match=r"likelihood is Gaussian\(noise=1.0\); it must be that of the file, Categ"
        ):
            fs.resume(tmp_path, progress=False, **given)


def test_the_last_two_states_are_kept(tmp_path):
    folder = tmp_path / "new" / "folder"
    stopped(folder)
    assert sorted(os.listdir(folder)) == sorted([RUN, LAST, PREVIOUS, checkpoint.DATA])
    states = list(sampler().iterate(*data_of()))
    assert np.array_equal(fs.load(folder / LAST).particles, states[2].particles)
    assert len(fs.load(folder / PREVIOUS).history) in (2, 3)
    assert json.loads((folder / RUN).read_text())["sampler"] == "SMC"


@pytest.mark.parametrize("damage", ["torn", "flipped", "gone", "empty"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, damage):
    whole = sampler().run(*data_of(), progress=False)
    stopped(tmp_path)
    last = tmp_path / LAST
    content = last.read_bytes()
    if damage == "gone":
        last.unlink()
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        last.write_bytes({"torn": content[: len(content) // 2], "flipped": flipped, "empty": b""}[damage])
    assert same_but_time(fs.resume(tmp_path, progress=False), whole)


def test_folders_without_a_run_and_with_another_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run that can go on"):
        fs.resume(tmp_path)
    stopped(tmp_path)
    with pytest.raises(ValueError, match="which holds a run already; it must be another folder, or the run go on by"):
        sampler().run(*data_of(), progress=False, checkpoint=tmp_path)
    (tmp_path / LAST).write_bytes(b"")
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        fs.resume(tmp_path)


def test_a_damaged_description_is_refused(tmp_path):
    stopped(tmp_path)
    path, content = tmp_path / RUN, (tmp_path / RUN).read_bytes()
    for damaged in (content.replace(b'"num_particles": 8', b'"num_particles": 9'), b"[1]", b"{}"):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.json is damaged: its contents are not those that were written"):
            fs.resume(tmp_path)
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="holds no run that can go on"):
        fs.resume(tmp_path)
    path.write_bytes(content)
    assert len(fs.resume(tmp_path, progress=False).history) == sampler().num_iterations


def forge(folder, part, **changes):
    """Change the description of a run, and its checksum."""
    held = json.loads((folder / RUN).read_bytes())
    del held["sha256"]
    held["data"][part] |= changes
    (folder / RUN).write_bytes(json.dumps({**held, "sha256": checkpoint._digest(held)}).encode())


def test_data_that_are_elsewhere_must_be_given(tmp_path):
    x, y = data_of()
    stopped(tmp_path)
    forge(tmp_path, "x", device="ipu:3")
    with pytest.raises(ValueError, match="x was on 'ipu:3', which is not here; x and y must be given to resume"):
        fs.resume(tmp_path)
    (tmp_path / "objects").write_bytes(bytes(10**4))
    forge(tmp_path, "x", map={"filename": str(tmp_path / "objects"), "dtype": "O", "shape": [4, 2], "offset": 0})
    with pytest.raises(ValueError, match="dtype is 'O'; a map must hold real numbers"):
        fs.resume(tmp_path)
    assert same_but_time(fs.resume(tmp_path, x, y, progress=False), sampler().run(x, y, progress=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"seconds": -1}, "seconds is -1"), ({"iterations": 0}, "iterations is 0; it must be at least 1, or None")],
)
def test_bad_plans_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        fs.Checkpoint(tmp_path, **options)


def test_no_kill_loses_a_run(tmp_path):
    kills, result = bench.kills.killed(tmp_path, np.random.default_rng(2), most=4)
    assert kills > 0
    assert bench.kills.differences(bench.kills.undisturbed(tmp_path), result) == []


@pytest.mark.parametrize("from_call", [0, 2, 4])  # of what the run is, of its first state, of a later one
def test_a_full_disk_does_not_lose_the_run(tmp_path, monkeypatch, from_call):
    calls = []

    def full(*arguments, replace=os.replace):
        calls.append(arguments)
        if len(calls) > from_call:
            raise OSError(28, "No space left on device")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", full)
    finished = sampler().run(*data_of(), progress=False, checkpoint=fs.Checkpoint(tmp_path, iterations=1))
    assert len(finished.history) == sampler().num_iterations
    (sentence,) = [warning for warning in finished.warnings if "could not be written" in warning]
    assert "No space left" in sentence and str(tmp_path) in sentence
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


class Interrupted(HMC):
    """A move that Ctrl-C ends, in the middle of an iteration, when it has been made so many times."""

    left = 2**63

    def __call__(self, *arguments):
        Interrupted.left -= 1
        outcome = super().__call__(*arguments)
        if Interrupted.left < 0:
            raise KeyboardInterrupt
        return outcome


@pytest.mark.parametrize("moves", [1, 4])
def test_an_interrupted_run_leaves_its_result_and_goes_on(tmp_path, monkeypatch, moves):
    smc = sampler(move=Interrupted(num_steps=2))
    whole = smc.run(*data_of(), progress=False)
    plan = fs.Checkpoint(tmp_path, seconds=3600)  # the folder has the first state until the run ends
    monkeypatch.setattr(Interrupted, "left", moves)
    result = smc.run(*data_of(), progress=False, checkpoint=plan)
    assert result.interrupted and len(result.history) == moves and result.state is None
    for _ in range(3):  # again, before it has come any further
        assert same(fs.load(tmp_path / LAST), result)
        monkeypatch.setattr(Interrupted, "left", 0)
        result = fs.resume(tmp_path, sampler=smc, progress=False)
        assert result.interrupted and len(result.history) == moves
        assert sum("was interrupted" in warning for warning in result.warnings) == 1
    monkeypatch.undo()
    assert same_but_time(fs.resume(tmp_path, sampler=smc, progress=False), whole)


def interrupt_at(iterations):
    def callback(result):
        if len(result.history) == iterations:
            raise KeyboardInterrupt

    return callback


def test_a_run_interrupted_behind_its_last_iteration_is_whole_when_it_goes_on(tmp_path):
    whole = sampler().run(*data_of(), progress=False)
    result = sampler().run(*data_of(), False, tmp_path, interrupt_at(len(whole.history)))
    assert result.interrupted and "was interrupted after 6 of 6 iterations" in result.warnings[-1]
    for _ in range(2):
        assert same_but_time(fs.resume(tmp_path, progress=False), whole)
    assert not fs.load(tmp_path / LAST).interrupted


def test_an_interruption_while_the_next_target_is_chosen_costs_no_evaluations(tmp_path, monkeypatch):
    def run(**options):
        return fs.SMC(posterior_of(), 8, fs.AdaptiveDataAnnealing(start=10, settle=1), fs.HMC(2)).run(
            *data_of(), progress=False, **options
        )

    whole, chosen, left = run(), fs.AdaptiveDataAnnealing.next_target, [4]

    def choose(*arguments):
        target = chosen(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return target

    monkeypatch.setattr(fs.AdaptiveDataAnnealing, "next_target", choose)
    assert len(run(checkpoint=tmp_path).history) == 3
    assert same_but_time(fs.resume(tmp_path, progress=False), whole)


def test_numbers_of_numpys_are_kept(tmp_path):
    annealing = fs.AdaptiveDataAnnealing(start=np.int64(10), settle=np.int32(1))
    smc = fs.SMC(posterior_of(), 8, annealing, fs.HMC(2, step_size=np.float32(0.05)))
    result = smc.run(*data_of(), False, fs.Checkpoint(tmp_path, iterations=1))
    assert not any("could not be written" in said for said in result.warnings)
    assert same_but_time(fs.resume(tmp_path, progress=False), result)


@pytest.mark.parametrize("name", ["data annealing, HMC", "defaults", "persistent"])
def test_a_run_that_has_ended_can_be_resumed_for_ever(tmp_path, name):
    whole = RUNS[name]().run(*data_of(), progress=False, checkpoint=tmp_path)
    for _ in range(4):
        assert same_but_time(fs.resume(tmp_path, progress=False), whole)


def test_a_run_from_particles_that_has_no_state_yet_is_not_begun_at_the_prior(tmp_path):
    smc = sampler(move=Interrupted(num_steps=2))
    Interrupted.left = 0
    start = np.full((8, posterior_of().num_params), 0.1, np.float32)
    with pytest.raises(KeyboardInterrupt):
        smc.run(*data_of(), progress=False, checkpoint=tmp_path, initial=start)
    Interrupted.left = 2**63
    for _ in range(2):
        with pytest.raises(ValueError, match="started from initial and ended before its first iteration; it must be"):
            fs.resume(tmp_path, sampler=smc, progress=False)
