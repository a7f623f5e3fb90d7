from dataclasses import replace

import numpy as np
import pytest
from small_runs import KINDS, data_of, posterior_of, same, sampler, weighted

import fastsmc as fs
from fastsmc import metrics, ops
from fastsmc.batches import Data
from fastsmc.result import History

COLUMNS = [
    "iteration", "batch_size", "likelihood_scale", "temperature", "ess", "resampled", "distinct_ancestors",
    "step_size", "acceptance", "energy_error", "log_evidence", "data_passes", "seconds",
]  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return sampler().run(*data_of(), progress=False)


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


def test_a_result_equals_itself_alone(run):
    other = replace(run)
    assert run == run and run != other and len({run, other}) == 2


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


def test_predictions_for_no_rows_are_refused():
    finished = sampler().run(*data_of())
    with pytest.raises(ValueError, match=r"x has shape \(0,"):
        finished.predict_proba(np.empty((0, data_of()[0].shape[1]), np.float32))


def test_a_target_that_is_not_finite_is_refused_with_its_row():
    x, y = np.zeros((4, 2), np.float32), np.array([0.0, 1.0, np.nan, 2.0], np.float32)
    posterior = fs.Posterior(fs.MLP([2, 1]), likelihood="gaussian")
    with pytest.raises(ValueError, match=r"y\[2, 0\] is nan; the gaussian likelihood needs finite numbers"):
        fs.SMC(posterior, 4, num_iterations=2).run(x, y)


def test_a_column_that_begins_late_has_as_many_rows():
    history = History({"ess": [3.0, 2.0]})
    history.append(ess=1.0, diverged=4)
    np.testing.assert_array_equal(history.ess, [3, 2, 1])
    np.testing.assert_array_equal(history.diverged, [np.nan, np.nan, 4])
