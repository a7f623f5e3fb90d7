import errno
import json
import os
import pickle

import numpy as np
import pytest
import torch
from small_runs import KINDS, data_of, same, sampler, weighted
from torch import nn

import fastsmc as fs
from fastsmc import files, ops
from fastsmc.annealing import Target
from fastsmc.files import FORMAT
from fastsmc.result import History


@pytest.fixture(scope="module")
def run():
    return sampler().run(*data_of(), progress=False)


@pytest.mark.parametrize("used", ["highest", "high", "medium"])
def test_a_result_says_what_precision_it_was_computed_with(tmp_path, monkeypatch, used):
    post = fs.Posterior(fs.MLP([4, 3]), precision="medium")
    monkeypatch.setattr(ops, "precision_in_use", lambda *args, **kwargs: used)
    x, y = np.ones((8, 4), np.float32), np.arange(8) % 3
    made = fs.SMC(post, num_particles=4, num_iterations=2).run(x, y, progress=False)
    made.save(tmp_path / "run.safetensors")
    monkeypatch.undo()
    assert made.precision_in_use == fs.load(tmp_path / "run.safetensors").precision_in_use == used


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, kind):
    x, y = data_of(kind)
    result = sampler(kind, annealing=fs.MiniBatch(15)).run(x, y, progress=False)
    assert result.warnings
    path = tmp_path / "run.safetensors"
    result.save(path)
    loaded = fs.load(path)
    assert same(loaded, result)
    assert loaded.log_evidence is None
    assert np.array_equal(loaded.predict_proba(x), result.predict_proba(x))
    loaded.save(str(tmp_path / "again.safetensors"))
    assert same(fs.load(str(tmp_path / "again.safetensors")), result)


def test_zero_weights_survive_a_file(tmp_path):
    result = weighted("categorical", np.nan)
    result.save(tmp_path / "run.safetensors")
    loaded = fs.load(tmp_path / "run.safetensors")
    assert loaded.log_weights[3] == -np.inf
    assert np.array_equal(loaded.particles, result.particles, equal_nan=True)


def test_a_torch_result_is_saved_as_its_numbers(tmp_path, run):
    result = sampler().run(*map(torch.from_numpy, data_of()), progress=False)
    result.save(tmp_path / "run.safetensors")
    loaded = fs.load(tmp_path / "run.safetensors")
    assert np.array_equal(loaded.particles, run.particles)


def contents(path):
    """Description and tensors of a file."""
    from safetensors.numpy import load_file

    head = path.read_bytes()
    size = int.from_bytes(head[:8], "little")
    return json.loads(json.loads(head[8 : 8 + size])["__metadata__"]["fastsmc"]), load_file(path)


def forge(path, description, tensors):
    """Written as if by us, with the right checksum."""
    from safetensors.numpy import save_file

    text = json.dumps(description)
    save_file(tensors, path, metadata={"fastsmc": text, "sha256": files._digest(text, tensors)})


def refused(path, sentence, **given):
    with pytest.raises(ValueError) as raised:
        fs.load(path, **given)
    assert sentence in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def saved(tmp_path, run):
    path = tmp_path / "run.safetensors"
    run.save(path)
    return path


def test_files_that_are_cut_off_are_refused(saved):
    whole = saved.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        refused(saved, "is not a whole safetensors file")
    with pytest.raises(FileNotFoundError):
        fs.load(saved.with_name("none.safetensors"))


def test_no_byte_can_change_unnoticed(saved):
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    for at in [8, *rng.integers(8, len(whole), 60)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.integers(8)
        saved.write_bytes(flipped)
        refused(saved, "")


def test_files_of_others_and_of_other_versions_are_refused(saved):
    from safetensors.numpy import save_file

    description, tensors = contents(saved)
    for metadata in (None, {"format": "pt"}, {"fastsmc": "null"}, {"fastsmc": "[]"}):
        save_file(tensors, saved, metadata=metadata)
        refused(saved, "was not written by fastsmc")
    save_file(tensors, saved, metadata={"fastsmc": "{"})
    refused(saved, "is not a whole safetensors file")
    for version in (FORMAT + 1, 1, None):
        forge(saved, description | {"format": version}, tensors)
        refused(saved, f"has format {version!r}; this version of fastsmc reads format {FORMAT}")
    save_file(tensors, saved, metadata={"fastsmc": json.dumps(description)})
    refused(saved, "is damaged: its contents are not those that were written")


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


def test_no_pickle_is_ever_loaded(saved):
    for write in (lambda: saved.write_bytes(pickle.dumps(Trap())), lambda: torch.save(Trap(), saved)):
        write()
        refused(saved, "is not a whole safetensors file")


DISAGREEING = {
    "particles of another network": ({"particles": lambda t: t[:, 1:]}, {}, "do not fit its network and weights"),
    "fewer particles": ({"particles": lambda t: t[1:]}, {}, "do not fit its network and weights"),
    "particles in float64": ({"particles": lambda t: t.astype(np.float64)}, {}, "do not fit its network and weights"),
    "weights of two": ({"log_weights": lambda t: t + np.log(2)}, {}, "its weights do not sum to one"),
    "weights that are NaN": ({"log_weights": lambda t: t * np.nan}, {}, "its weights do not sum to one"),
    "a short column": ({"history.ess": lambda t: t[1:]}, {}, "the columns of its history differ in length"),
    "a parent that is none": ({"genealogy": lambda t: t + 8}, {}, "its genealogy does not name particles"),
    "no particles": ({"particles": lambda t: None}, {}, "it has no 'particles'"),
    "other names": ({}, {"parameters": [["a", [3]]]}, "weights with other names or shapes"),
    "an unknown network": ({}, {"network": {"kind": "os.system"}}, "a os.system, which a file cannot hold"),
    "a network of the wrong kind": ({}, {"network": {"kind": "Normal"}}, "cannot be read"),
    "a network that cannot be": ({}, {"network": {"kind": "MLP", "widths": [2]}}, "widths is [2]"),
    "a prior that cannot be": ({}, {"prior": {"kind": "Normal", "scale": -1}}, "scale is -1"),
    "nonsense": ({}, {"target": 3}, "cannot be read"),
    "an unknown field": ({}, {"target": {"begin": 3}}, "unexpected keyword argument 'begin'"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_files_that_do_not_agree_with_themselves_are_refused(saved, name):
    changes, described, sentence = DISAGREEING[name]
    description, tensors = contents(saved)
    for tensor, change in changes.items():
        tensors[tensor] = change(tensors[tensor])
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items() if v is not None}
    forge(saved, description | described, tensors)
    refused(saved, sentence)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, run, broken):
    path = tmp_path / "run.safetensors"
    run.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        with pytest.raises(OSError, match="No space left on device"):
            weighted("gaussian").save(path)
    assert os.listdir(tmp_path) == ["run.safetensors"]
    assert path.read_bytes() == before
    weighted("gaussian").save(path)
    assert os.listdir(tmp_path) == ["run.safetensors"]
    assert path.read_bytes() != before


def result_of(posterior):
    weights = np.log([0.5, 0.25, 0.25])
    return fs.Result(posterior.sample_prior(3), weights, posterior, Target(0, 40), 40, History({"iteration": [0]}))


NAMED = {
    "mlp": lambda: fs.Posterior(fs.MLP([4, 3], "gelu")),
    "lenet": lambda: fs.Posterior(fs.LeNet5(3, 4, "tanh", 13), fs.Laplace("fan_in")),
    "layers of a module": lambda: fs.Posterior(fs.from_torch(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (2, 2))),
    "priors by name": lambda: fs.Posterior(
        fs.MLP([4, 2, 3]), {"*.bias": fs.StudentT(fs.HalfCauchy(0.5), df=3), "*": fs.Normal(fs.LogNormal(0.3, 2.0))}
    ),
    "noise that is sampled": lambda: fs.Posterior(fs.MLP([4, 1]), likelihood=fs.Gaussian(fs.HalfNormal(0.3))),
    "counts": lambda: fs.Posterior(fs.MLP([4, 1]), likelihood="poisson"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_file_can_name_is_made_again(tmp_path, name):
    torch.manual_seed(0)
    made = result_of(NAMED[name]())
    made.save(tmp_path / "run.safetensors")
    loaded = fs.load(tmp_path / "run.safetensors")
    assert same(loaded, made)
    x = np.ones((2, 4), np.float32) if "lenet" not in name else np.ones((2, 3, 13, 13), np.float32)
    assert np.array_equal(loaded.predict_proba(x), made.predict_proba(x))


def normal(outputs, y):
    return torch.distributions.Normal(outputs, 1.0).log_prob(y).sum(-1)


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def test_what_a_file_cannot_hold_must_be_given(tmp_path):
    path = tmp_path / "run.safetensors"
    net = fs.from_torch(module(), fixed=["0.*"])
    result_of(fs.Posterior(net, likelihood=normal)).save(path)
    refused(path, "its network is a TorchNetwork, which a file cannot hold; it must be given to load as network=")
    refused(path, "its likelihood is a Custom", network=net)
    loaded = fs.load(path, network=fs.from_torch(module(), fixed=["0.*"]), likelihood=normal)
    assert np.array_equal(loaded.particles, result_of(fs.Posterior(net, likelihood=normal)).particles)
    refused(path, "had fixed has other values", network=fs.from_torch(module(1), fixed=["0.*"]), likelihood=normal)
    refused(path, "weights with other names or shapes", network=fs.from_torch(module()), likelihood=normal)


def test_what_a_file_holds_is_not_overridden(tmp_path):
    path, table = tmp_path / "run.safetensors", {"*.bias": fs.Laplace(0.5), "*": fs.Normal(2.0)}
    made = fs.Posterior(fs.MLP([4, 2, 3]), table)
    result_of(made).save(path)
    assert same(fs.load(path, network=fs.MLP([4, 2, 3]), prior=dict(table), likelihood="categorical"), result_of(made))
    others = {
        "network": fs.MLP([4, 2, 3], "tanh"),
        "prior": dict(reversed(table.items())),  # of which another entry is the first that matches
        "likelihood": "gaussian",
    }
    for name, given in others.items():
        refused(path, f"it must be that of the file, {getattr(made, name)!r}, or left out", **{name: given})
    refused(path, "likelihood is Gaussian(noise=1.0); it must be", likelihood=fs.Gaussian())


class Own(fs.Laplace):
    """A prior that no file knows."""


def test_a_table_with_a_prior_of_ones_own_must_be_given(tmp_path):
    path, table = tmp_path / "run.safetensors", {"*.bias": Own(0.5), "*": fs.Normal(2.0)}
    made = result_of(fs.Posterior(fs.MLP([4, 2, 3]), table))
    made.save(path)
    refused(path, "its prior is a Own, which a file cannot hold; it must be given to load as prior=")
    assert same(fs.load(path, prior=table), made)
    refused(path, "it must be that of the file, with a Own, as it was", prior={**table, "*": fs.Normal(50.0)})
    refused(path, "it must be that of the file, with a Own, as it was", prior=fs.Normal(2.0))


def test_a_likelihood_of_ones_own_is_not_another(tmp_path):
    path = tmp_path / "run.safetensors"
    made = result_of(fs.Posterior(fs.MLP([4, 2, 3]), likelihood=lambda outputs, y: -((outputs - y) ** 2).sum(-1)))
    made.save(path)
    refused(path, "it must be that of the file, with a Custom, as it was", likelihood="gaussian")
    assert same(fs.load(path, likelihood=made.posterior.likelihood), made)
