"""The estimators under scikit-learn's own checks and tools, and against closed forms."""

import pickle
import sys

import numpy as np
import pytest

import fastsmc as fs

pytest.importorskip("sklearn")

from scipy import stats
from sklearn import datasets
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

QUICK = {
    "hidden_layer_sizes": (16,),
    "num_particles": 16,
    "annealing": fs.AdaptiveDataAnnealing(settle=4),
    "random_state": 0,
}
BOTH = pytest.mark.parametrize("kind", [fs.SMCClassifier, fs.SMCRegressor])


# all of scikit-learn's checks; few small networks and a short run, since they fit hundreds of times
@parametrize_with_checks([fs.SMCClassifier(**QUICK), fs.SMCRegressor(**QUICK)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def data_of(kind, rows=60):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 3))
    y = np.sin(2 * x[:, 0]) + 0.2 * rng.standard_normal(rows)
    return x, np.array(["no", "perhaps", "yes"])[np.digitize(y, [-0.4, 0.4])] if kind is fs.SMCClassifier else y


def predictions(estimator, x):
    return estimator.predict(x, return_std=True) if hasattr(estimator, "noise") else (estimator.predict_proba(x),)


def same(estimators, x):
    first, *others = ([*predictions(e, x), e.log_evidence_] for e in estimators)
    return all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.fixture(scope="module")
def digits():
    return train_test_split(*datasets.load_digits(return_X_y=True), train_size=800, random_state=0)


def test_grid_search_on_digits(digits):
    """In processes of their own."""
    x, x_test, y, y_test = digits
    grid = {"prior_scale": [0.01, 0.3, 1.0], "annealing": ["adaptive", "smooth"]}
    search = GridSearchCV(
        fs.SMCClassifier((16,), num_particles=8, num_iterations=30, random_state=0), grid, cv=2, n_jobs=2
    )
    search.fit(x[:400], y[:400])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["prior_scale"] > 0.01
    assert search.score(x_test, y_test) > 0.8


def test_pipeline(digits):
    x, x_test, y, y_test = digits
    model = make_pipeline(PCA(20), fs.SMCClassifier(**QUICK)).fit(x, y, smcclassifier__sample_weight=np.ones(len(x)))
    assert model.score(x_test, y_test) > 0.9
    assert model[-1].n_features_in_ == 20


def test_data_in_parts_on_digits(digits):
    """Within a point of accuracy, and a tenth of a nat, of all data at once."""
    x, x_test, y, y_test = digits
    whole = fs.SMCClassifier(**QUICK).fit(x, y)
    parts = fs.SMCClassifier(**QUICK)
    scores = [
        parts.partial_fit(x[rows], y[rows], classes=range(10)).score(x_test, y_test)
        for rows in np.array_split(np.arange(len(x)), 4)
    ]
    assert whole.score(x_test, y_test) > 0.93
    assert scores[-1] > max(scores[0], whole.score(x_test, y_test) - 0.01)
    losses = [log_loss(y_test, model.predict_proba(x_test)) for model in (whole, parts)]
    assert losses[1] < losses[0] + 0.1
    assert parts.result_.num_data == len(x)


LINEAR = {"hidden_layer_sizes": (), "prior_scale": 1.0, "standardize": False, "noise": 0.5, "num_particles": 200}
RUNS, FALSE_ALARM = 12, 1e-6


@pytest.mark.statistics
@pytest.mark.parametrize("parts", [1, 3])
def test_weighted_regression_is_that_of_the_closed_form(parts):
    """Means and deviations of predictions by twelve runs, each within Student's t at a false alarm of 1e-6."""
    rng = np.random.default_rng(1)
    x, new, weights = rng.standard_normal((30, 2)), rng.standard_normal((4, 2)), rng.uniform(0, 3, 30)
    y = x @ [1.0, -0.5] + 0.3 + 0.5 * rng.standard_normal(30)
    design, at = (np.column_stack([a, np.ones(len(a))]) for a in (x, new))
    covariance = np.linalg.inv(np.eye(3) + (design.T * weights) @ design / 0.25)
    mean = at @ covariance @ design.T @ (weights * y) / 0.25
    variance = 0.25 + np.einsum("ni,ij,nj->n", at, covariance, at)
    found = []
    for seed in range(RUNS):
        model = fs.SMCRegressor(**LINEAR, random_state=seed, annealing=fs.AdaptiveDataAnnealing(start=10, settle=10))
        for rows in np.array_split(np.arange(30), parts):
            model.partial_fit(x[rows], y[rows], weights[rows])
        predicted, deviation = model.predict(new, return_std=True)
        found.append(np.concatenate([predicted - mean, deviation**2 / variance - 1]))
    t = np.mean(found, axis=0) / (np.std(found, axis=0, ddof=1) / np.sqrt(RUNS))
    # the variance of P draws is a share 1 / P too small, far below a standard error of these
    assert np.all(np.abs(t) < stats.t.isf(FALSE_ALARM / 2, RUNS - 1)), t


@BOTH
def test_weights_repeat_rows_to_the_bit(kind):
    x, y = data_of(kind)
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 4, len(x))
    rows = rng.permutation(np.repeat(np.arange(len(x)), weights))
    weighted = kind(**QUICK).fit(x, y, sample_weight=weights)
    repeated = kind(**QUICK).fit(x[rows], y[rows])
    assert same([weighted, repeated], x)
    assert not same([weighted, kind(**QUICK).fit(x, y)], x)


@BOTH
def test_the_first_part_is_a_fit_and_later_ones_go_on(kind):
    x, y = data_of(kind)
    first = {"classes": np.unique(y)} if kind is fs.SMCClassifier else {}
    parts = kind(**QUICK).partial_fit(x[:40], y[:40], **first)
    fitted = kind(**QUICK).fit(x[:40], y[:40])
    assert same([parts, fitted], x)
    copied = pickle.loads(pickle.dumps(fitted))
    assert same([model.partial_fit(x[40:], y[40:]) for model in (parts, fitted, copied)], x)
    assert parts.result_.num_data == 60
    assert same([parts.fit(x[:40], y[:40]), kind(**QUICK).fit(x[:40], y[:40])], x)


@BOTH
def test_clones_are_the_same_and_unfitted(kind):
    x, y = data_of(kind)
    model = kind(**QUICK).fit(x, y)
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copied.predict(x)
    assert same([model, copied.fit(x, y)], x)


@BOTH
def test_what_is_known_after_a_fit(kind):
    x, y = data_of(kind)
    model = kind(**QUICK).fit(x, y)
    assert model.n_iter_ == len(model.result_.history)
    assert model.log_evidence_ == model.result_.log_evidence
    assert model.warnings_ == model.result_.warnings
    assert kind(**QUICK).set_params(annealing="mini", num_iterations=3).fit(x, y).log_evidence_ is None


def test_scales_are_learned_exactly():
    """Powers of two change no bit but those of the exponents."""
    x, y = data_of(fs.SMCRegressor)
    mean, deviation = fs.SMCRegressor(**QUICK).fit(x, y).predict(x, return_std=True)
    scaled = fs.SMCRegressor(**QUICK).fit(1024 * x, 4 * y).predict(1024 * x, return_std=True)
    assert np.array_equal(scaled, [4 * mean, 4 * deviation])
    raw = fs.SMCRegressor(**QUICK, standardize=False).fit(1024 * x, 4 * y).predict(1024 * x)
    assert not np.allclose(raw, 4 * mean)


@pytest.mark.statistics
@pytest.mark.parametrize("outputs", [(), (2,)])
def test_noise_is_learned(outputs):
    """Of 300 residuals about a line the deviation is known to 4 %; five of those are a false alarm of 1e-6."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 1))
    y = 5 * (x.reshape(300, *[1] * len(outputs)) if outputs else x[:, 0]) + 2.0 * rng.standard_normal((300, *outputs))
    model = fs.SMCRegressor(**(QUICK | {"hidden_layer_sizes": (), "prior_scale": 1.0})).fit(x, y)
    mean, deviation = model.predict(x, return_std=True)
    assert mean.shape == deviation.shape == y.shape
    assert np.all(np.abs(deviation / 2.0 - 1) < 5 / np.sqrt(2 * 300))
    given = fs.SMCRegressor(**(QUICK | {"hidden_layer_sizes": ()}), noise=0.5).fit(x, y)
    assert np.all(given.predict(x, return_std=True)[1] > 0.5 * y.std(axis=0))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden_layer_sizes": (4, 0)}, "^hidden_layer_sizes or activation: widths is"),
        ({"hidden_layer_sizes": 4}, "^hidden_layer_sizes or activation: "),
        ({"activation": "sine"}, "activation is 'sine'"),
        ({"prior_scale": -1.0}, "^prior_scale: scale is -1.0"),
        ({"noise": 0.0}, "^noise: noise is 0.0"),
        ({"noise": "lerned"}, "^noise: "),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"annealing": "fast"}, "annealing is 'fast'; it must be an annealing scheme or one of 'full', 'data'"),
        ({"move": "hmc"}, "move is 'hmc'; it must be a move or one of 'HMC'"),
        ({"precision": "best"}, "precision is 'best'"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fs.SMCRegressor(**QUICK | parameters).fit(*data_of(fs.SMCRegressor))


def test_bad_parts_are_named():
    x, y = data_of(fs.SMCClassifier)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        fs.SMCClassifier(**QUICK).partial_fit(x, y)
    model = fs.SMCClassifier(**QUICK).fit(x, y)
    with pytest.raises(ValueError, match="unseen labels"):
        model.partial_fit(x, np.full(len(x), "never"))
    with pytest.raises(ValueError, match="is not the same as on last call"):
        model.partial_fit(x, y, classes=["no", "yes"])
    for weight in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=r"(?i)sample.weight|0 sample"):
            model.fit(x, y, sample_weight=np.full(len(x), weight))
    tempered = fs.SMCClassifier(**QUICK | {"annealing": "tempering"}).fit(x, y)
    with pytest.raises(ValueError, match="annealing is LikelihoodTempering"):
        tempered.partial_fit(x, y)
    x, y = data_of(fs.SMCRegressor)
    with pytest.raises(ValueError, match=r"y has shape \(60, 2\)"):
        fs.SMCRegressor(**QUICK).fit(x, y).partial_fit(x, np.stack([y, y], axis=1))


def test_failed_parts_change_nothing():
    x, y = data_of(fs.SMCClassifier)
    model, untouched = (fs.SMCClassifier(**QUICK).fit(x, y) for _ in range(2))
    with pytest.raises(ValueError, match="num_particles"):
        model.set_params(num_particles=0).partial_fit(x, y)
    assert same([model, untouched], x)
    assert same([model.set_params(num_particles=16).partial_fit(x, y), untouched.partial_fit(x, y)], x)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastsmc.integrations.sklearn")
    monkeypatch.delitem(vars(fs), "SMCRegressor")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastsmc\[sklearn\]'"):
        fs.SMCRegressor  # noqa: B018
