import errno
import json
import os

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import metrics, ops
from fastsmc.annealing import Target
from fastsmc.batches import Data
from fastsmc.result import FORMAT, History

COLUMNS = [
    "iteration", "batch_size", "likelihood_scale", "temperature", "ess", "resampled", "distinct_ancestors",
    "step_size", "acceptance", "energy_error", "log_evidence", "data_passes", "seconds",
]  # fmt: skip
KINDS = {"categorical": 3, "bernoulli": 1, "gaussian": 2}


def data_of(kind="categorical", samples=40):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((samples, 2), np.float32)
    y = {
        "categorical": lambda: rng.integers(0, 3, samples),
        "bernoulli": lambda: rng.integers(0, 2, samples),
        "gaussian": lambda: rng.standard_normal((samples, 2), np.float32),
    }[kind]()
    return x, y


def posterior_of(kind="categorical"):
    likelihood = fs.Gaussian(noise=0.3) if kind == "gaussian" else kind
    return fs.Posterior(fs.MLP([2, 4, KINDS[kind]], "tanh"), fs.Normal("fan_in"), likelihood)


def sampler(kind="categorical", **options):
    options = {"annealing": fs.DataAnnealing(sizes=[10, 20]), "move": fs.HMC(3), "num_iterations": 6, **options}
    return fs.SMC(posterior_of(kind), num_particles=8, **options)


@pytest.fixture(scope="module")
def run():
    return sampler().run(*data_of(), progress=False)


def weighted(kind, poison=0.0):
    """A result with unequal weights, one of which is zero, of a particle that may hold anything."""
    posterior = posterior_of(kind)
    particles = posterior.sample_prior(5)
    particles[3] = np.where(poison == 0, particles[3], poison)
    weights = np.array([0.5, 0.25, 0.125, 0.0, 0.125])
    with np.errstate(divide="ignore"):
        return fs.Result(particles, np.log(weights), posterior, Target(0, 40), 40, History())


def outputs64(result, x):
    """The engine's own outputs, which are the matter of test_mlp, of the particles that count."""
    particles = result.particles[result.weights > 0]
    return ops.network_outputs(result.posterior.network, particles, x).astype(np.float64)


def mean_probabilities(result, x):
    z, weights = outputs64(result, x), result.weights[result.weights > 0]
    probabilities = {
        "categorical": lambda: np.exp(z - np.logaddexp.reduce(z, axis=2, keepdims=True)),
        "bernoulli": lambda: 1 / (1 + np.exp(-z)),
        "gaussian": lambda: z,
    }[result.posterior.likelihood.name]()
    return np.tensordot(weights, probabilities, 1)


# a subtraction, an exponential, a sum and a division in float32, of numbers up to about 3
ROUNDING = 8 * float(np.finfo(np.float32).eps)


def test_history_has_a_row_for_each_iteration(run):
    history = run.history
    assert set(COLUMNS) <= set(history)
    assert len(history) == 6
    assert all(history[name].shape == (6,) for name in history)
    assert np.array_equal(history.iteration, np.arange(6))
    assert np.array_equal(history.batch_size, history["batch_size"])
    assert history.last == {name: history[name][-1] for name in history}
    assert history["batch_size"][-1] == 40
    with pytest.raises(AttributeError, match="acceptence"):
        history.acceptence  # noqa: B018
    with pytest.raises(KeyError):
        history["acceptence"]


def test_history_copies_are_left_alone():
    history = History({"ess": [1.0]})
    copy = history.copy()
    history.append(ess=2.0)
    assert (len(History()), len(copy), len(history)) == (0, 1, 2)
    assert list(copy.ess) == [1.0]


def test_weights_and_ess():
    result = weighted("gaussian")
    assert np.allclose(result.weights, [0.5, 0.25, 0.125, 0, 0.125], rtol=1e-15, atol=0)
    assert result.ess == pytest.approx(1 / (0.25 + 0.0625 + 2 * 0.015625), rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [0.0, np.nan, np.inf])
def test_predictions_are_weighted_means(kind, poison):
    """A weight of zero is no weight, whatever its particle holds."""
    x, _ = data_of(kind)
    result = weighted(kind, poison)
    truth = mean_probabilities(result, x)
    proba = result.predict_proba(x)
    assert proba.shape == (40, KINDS[kind])
    assert np.abs(proba - truth).max() <= ROUNDING
    decided = {
        "categorical": lambda: truth.argmax(axis=1),
        "bernoulli": lambda: (truth > 0.5).astype(int),
        "gaussian": lambda: proba,
    }[kind]()
    assert np.array_equal(result.predict(x), decided)


def test_predictions_are_made_in_blocks():
    result, x = weighted("categorical"), data_of(samples=400_000)[0]
    assert 4 * 3 * len(x) > 2**22  # more than one block
    some = np.arange(0, len(x), 997)
    assert np.array_equal(result.predict_proba(x)[some], result.predict_proba(x[some]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [0.0, np.nan])
def test_evaluation_is_that_of_the_weighted_mean(kind, poison):
    x, y = data_of(kind)
    result = weighted(kind, poison)
    scores = result.evaluate(x, y)
    if kind == "gaussian":
        weights, noise = result.weights[result.weights > 0], 0.3
        densities = np.exp(-0.5 * ((y - outputs64(result, x)) / noise) ** 2) / np.sqrt(2 * np.pi * noise**2)
        mixture = np.tensordot(weights, densities.prod(axis=2), 1)
        expected = {"rmse": np.sqrt(np.mean((mean_probabilities(result, x) - y) ** 2)), "nll": -np.log(mixture).mean()}
    else:
        proba = result.predict_proba(x)
        proba = np.hstack([1 - proba, proba]) if kind == "bernoulli" else proba
        expected = {
            "accuracy": np.mean(proba.argmax(axis=1) == y),
            "nll": -np.log(proba[np.arange(len(y)), y]).mean(),
            "ece": metrics.expected_calibration_error(proba, y),
        }
    assert scores.keys() == expected.keys()
    assert all(type(score) is float for score in scores.values())
    assert scores == pytest.approx(expected, rel=ROUNDING)


def same(a, b):
    """Whether two results are the same to the bit."""
    assert np.array_equal(a.particles, b.particles)
    assert np.array_equal(a.log_weights, b.log_weights)
    assert (a.particles.dtype, a.log_weights.dtype) == (b.particles.dtype, b.log_weights.dtype)
    assert sorted(a.history) == sorted(b.history)
    for name in a.history:
        assert np.array_equal(a.history[name], b.history[name])
        assert a.history[name].dtype == b.history[name].dtype
    for name in ("network", "prior", "likelihood", "precision"):
        assert getattr(a.posterior, name) == getattr(b.posterior, name)
    for name in ("target", "num_data", "warnings", "precision_in_use"):
        assert getattr(a, name) == getattr(b, name)
    return True


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
    torch = pytest.importorskip("torch")
    result = sampler().run(*map(torch.from_numpy, data_of()), progress=False)
    result.save(tmp_path / "run.safetensors")
    loaded = fs.load(tmp_path / "run.safetensors")
    assert np.array_equal(loaded.particles, run.particles)


def written_by_hand(path, tensors, **changes):
    from safetensors.numpy import save_file

    posterior = weighted("categorical").posterior
    description = {
        "format": FORMAT,
        "network": {"kind": "MLP", "widths": posterior.network.widths, "activation": "tanh"},
        "prior": {"kind": "Normal", "scale": 1.0},
        "likelihood": {"kind": "categorical"},
        "precision": "highest",
        "target": {"start": 0, "stop": 40},
        "num_data": 40,
        "warnings": [],
    } | changes
    save_file(tensors, path, metadata={"fastsmc": json.dumps(description)})


def test_foreign_files_are_refused_in_one_sentence(tmp_path, run):
    from safetensors.numpy import save_file

    path = tmp_path / "run.safetensors"
    particles, log_weights = run.particles, run.log_weights
    good = {"particles": particles, "log_weights": log_weights}
    written_by_hand(path, good)
    assert np.array_equal(fs.load(path).particles, particles)

    def refused(sentence):
        with pytest.raises(ValueError) as raised:
            fs.load(path)
        assert sentence in str(raised.value)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)

    save_file(good, path)
    refused("was not written by fastsmc")
    save_file(good, path, metadata={"format": "pt"})
    refused("was not written by fastsmc")
    save_file(good, path, metadata={"fastsmc": "{"})
    refused("is not a whole safetensors file")
    written_by_hand(path, good, format=FORMAT + 1)
    refused(f"has format {FORMAT + 1}; this version of fastsmc reads format {FORMAT}")
    for wrong in (particles[:, 1:], particles[1:], particles[0]):
        written_by_hand(path, {**good, "particles": np.ascontiguousarray(wrong)})
        refused(f"holds particles of shape {wrong.shape}")
    run.save(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("is not a whole safetensors file")
    with pytest.raises(FileNotFoundError):
        fs.load(tmp_path / "none.safetensors")


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


def test_a_checkpoint_folder_holds_the_last_state(tmp_path, run):
    folder = tmp_path / "new" / "folder"
    seen = []

    def callback(state):
        seen.append(fs.load(folder / "last.safetensors"))

    result = sampler().run(*data_of(), progress=False, checkpoint=folder, callback=callback)
    assert os.listdir(folder) == ["last.safetensors"]
    assert same(fs.load(folder / "last.safetensors"), result)
    assert len(seen[0].history) == 1  # the first state is there at once
    assert np.array_equal(result.particles, run.particles)


def test_an_interrupted_run_returns_what_there_is(tmp_path):
    def interrupt(state):
        if len(state.history) == 3:
            raise KeyboardInterrupt

    whole = list(sampler().iterate(*data_of()))
    result = sampler().run(*data_of(), progress=False, checkpoint=tmp_path, callback=interrupt)
    assert np.array_equal(result.particles, whole[2].particles)
    assert len(result.history) == 3
    assert result.warnings[-1] == "the run was interrupted after 3 of 6 iterations"
    assert same(fs.load(tmp_path / "last.safetensors"), result)


class Ends(fs.FullBatch):
    """Raises once the given number of targets is used up."""

    def __init__(self, after, error):
        super().__init__()
        vars(self).update(after=after, error=error)

    def next_target(self, iteration, *arguments):
        if iteration == self.after:
            raise self.error
        return super().next_target(iteration, *arguments)


def test_an_interrupt_within_an_iteration_returns_the_state_before():
    result = sampler(annealing=Ends(2, KeyboardInterrupt())).run(*data_of(), progress=False)
    assert len(result.history) == 2
    with pytest.raises(KeyboardInterrupt):
        sampler(annealing=Ends(0, KeyboardInterrupt())).run(*data_of(), progress=False)


def test_an_error_leaves_the_last_state_in_the_checkpoint(tmp_path):
    with pytest.raises(ZeroDivisionError):
        sampler(annealing=Ends(4, ZeroDivisionError())).run(*data_of(), progress=False, checkpoint=tmp_path)
    assert len(fs.load(tmp_path / "last.safetensors").history) == 4


def test_a_degenerate_run_carries_its_last_good_state(tmp_path):
    (x, y), settings = data_of("gaussian"), {"annealing": fs.DataAnnealing(sizes=[10, 20]), "num_iterations": 6}
    last = Data(x, y, posterior_of("gaussian"), seed=0).x[-1]  # which joins with the third step
    y[np.all(x == last, axis=1)] = 1e30  # whose square float32 cannot hold
    with pytest.raises(fs.DegenerateError, match="all 8 particles have a density that is zero or not finite") as raised:
        sampler("gaussian", **settings).run(x, y, progress=False, checkpoint=tmp_path)
    result = raised.value.result
    assert list(result.history.batch_size) == [10, 10, 20, 20]
    assert np.isfinite(result.particles).all()
    assert same(fs.load(tmp_path / "last.safetensors"), result)
    y[:] = 1e30
    with pytest.raises(fs.DegenerateError) as raised:
        sampler("gaussian", **settings).run(x, y, progress=False)
    assert raised.value.result is None


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(poison):
    x, y = data_of()
    x[7, 1] = poison
    with pytest.raises(ValueError, match=r"^x\[7\] holds NaN or infinity; every feature must be a finite number$"):
        sampler().run(x, y, progress=False)


def test_torch_in_torch_out(run):
    torch = pytest.importorskip("torch")
    x, y = map(torch.from_numpy, data_of())
    result = sampler().run(x, y, progress=False)
    answers = {
        "particles": (result.particles, run.particles, torch.float32),
        "log weights": (result.log_weights, run.log_weights, torch.float64),
        "probabilities": (result.predict_proba(x), run.predict_proba(x.numpy()), torch.float64),
        "predictions": (result.predict(x), run.predict(x.numpy()), torch.int64),
    }
    for tensor, array, dtype in answers.values():
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == dtype
        assert np.array_equal(tensor.numpy(), array)
    assert result.evaluate(x, y) == run.evaluate(*data_of())
    assert type(result.weights) is np.ndarray
    # what comes back is as the new data are
    assert type(result.predict_proba(x.numpy())) is np.ndarray


def test_the_time_of_a_callback_is_not_counted(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    class Slow(fs.FullBatch):
        def next_target(self, *arguments):
            clock.now += 1
            return super().next_target(*arguments)

    def callback(_):
        clock.now += 100

    clock = Clock()
    monkeypatch.setattr("fastsmc.progress.time", clock)
    result = sampler(annealing=Slow()).run(*data_of(), progress=False, callback=callback)
    assert list(result.history.seconds) == [1, 2, 3, 4, 5, 6]


def test_a_result_says_which_target_it_represents(run):
    assert run.log_evidence == run.history.log_evidence[-1]
    states = list(sampler().iterate(*data_of()))
    assert states[0].log_evidence is None
    assert "represent 10 of 40 data points at likelihood scale 1 and temperature 1" in states[0].warnings[0]
    assert not any("not the full posterior" in warning for warning in run.warnings)


def test_a_full_disk_at_the_checkpoint_does_not_lose_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    finished = sampler().run(*data_of(), checkpoint=tmp_path)
    assert len(finished.history) == sampler().num_iterations
    assert "could not be written" in finished.warnings[-1] and "No space left" in finished.warnings[-1]


def test_predictions_for_no_rows_are_refused():
    finished = sampler().run(*data_of())
    with pytest.raises(ValueError, match=r"x has shape \(0,"):
        finished.predict_proba(np.empty((0, data_of()[0].shape[1]), np.float32))


def test_a_target_that_is_not_finite_is_refused_with_its_row():
    x, y = np.zeros((4, 2), np.float32), np.array([0.0, 1.0, np.nan, 2.0], np.float32)
    posterior = fs.Posterior(fs.MLP([2, 1]), likelihood="gaussian")
    with pytest.raises(ValueError, match=r"y\[2, 0\] is nan; the gaussian likelihood needs finite numbers"):
        fs.SMC(posterior, 4, num_iterations=2).run(x, y)


def test_every_network_is_saved(tmp_path):
    for network in (fs.MLP([4, 3], "gelu"), fs.LeNet5(3, 4, "tanh", 13)):
        posterior = fs.Posterior(network)
        history = History({"iteration": [0]})
        saved = fs.Result(posterior.sample_prior(2), np.log([0.5, 0.5]), posterior, Target(0, 40), 40, history)
        saved.save(tmp_path / "run.safetensors")
        assert same(fs.load(tmp_path / "run.safetensors"), saved)
