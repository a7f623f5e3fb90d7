import numpy as np
import pytest

from fastsmc import metrics


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(4), 300)
    return proba, np.array([rng.choice(4, p=p) for p in proba])


def test_accuracy_and_nll_of_a_table_by_hand():
    proba, y = [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]], [0, 2, 0]
    assert metrics.accuracy(proba, y) == pytest.approx(2 / 3)
    assert metrics.negative_log_likelihood(proba, y) == pytest.approx(-np.log([0.5, 0.7, 0.2]).mean())


def test_nll_agrees_with_scikit_learn(case):
    log_loss = pytest.importorskip("sklearn.metrics").log_loss
    assert metrics.negative_log_likelihood(*case) == pytest.approx(log_loss(case[1], case[0]), rel=1e-12)


def test_a_zero_probability_costs_float32s_smallest_number():
    expected = -np.log(np.finfo(np.float32).tiny)
    assert metrics.negative_log_likelihood([[0.0, 1.0]], [0]) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_reliability_agrees_with_a_loop(case, bins):
    proba, y = case
    got = metrics.reliability(proba, y, bins)
    confidence, correct = proba.max(axis=1), proba.argmax(axis=1) == y
    error = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        assert got.count[i] == inside.sum()
        if inside.any():
            assert got.confidence[i] == pytest.approx(confidence[inside].mean())
            assert got.accuracy[i] == pytest.approx(correct[inside].mean())
            error += inside.mean() * abs(got.accuracy[i] - got.confidence[i])
        else:
            assert np.isnan(got.confidence[i])
            assert np.isnan(got.accuracy[i])
    assert metrics.expected_calibration_error(proba, y, bins) == pytest.approx(error)


def test_calibration_at_its_ends():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert metrics.expected_calibration_error(certain, [0, 1, 2, 0]) == 0
    assert metrics.expected_calibration_error(certain, [1, 2, 0, 1]) == 1


def test_rmse():
    assert metrics.rmse([1.0, 2.0], [[1.0], [4.0]]) == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match=r"prediction has shape \(2,\), but y has shape \(3,\)"):
        metrics.rmse([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("proba", "y", "sentence"),
    [
        ([0.5, 0.5], [0], r"proba has shape \(2,\)"),
        ([[0.5, 0.5]], [0, 1], r"y \(2,\)"),
        (np.empty((0, 2)), np.empty(0, int), r"proba has shape \(0, 2\)"),
        ([[np.nan, 0.5]], [0], "not finite"),
        ([[0.5, 0.5]], [2], "y must hold integers from 0 to 1"),
        ([[0.5, 0.5]], [-1], "y must hold integers from 0 to 1"),
        ([[0.5, 0.5]], [0.0], "y must hold integers"),
    ],
)
def test_bad_input_gets_one_sentence(proba, y, sentence):
    for metric in (metrics.accuracy, metrics.negative_log_likelihood, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match=sentence):
            metric(proba, y)
