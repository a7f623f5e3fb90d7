"""Estimators for scikit-learn: Bayesian networks of fully connected layers, for classes and for numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.preprocessing import LabelEncoder, StandardScaler
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the estimators need scikit-learn: pip install 'fastsmc[sklearn]' ({error})") from None

import fastsmc as fs
from fastsmc import arrays
from fastsmc.annealing import Annealing
from fastsmc.demo import SCHEMES
from fastsmc.likelihoods import Likelihood
from fastsmc.moves import Move

MOVES = ("HMC", "KineticLangevin", "Langevin", "MALA", "RandomWalk", "SGHMC")
BATCHES = 20
"""The first batch of schemes that have one is this part of the data."""
REALS = (np.float64, np.float32)


@dataclass(eq=False, repr=False)
class _Estimator(BaseEstimator, ABC):
    """What the estimators share: parameters, data, sampler."""

    hidden_layer_sizes: Sequence[int] = (100,)
    activation: str = "relu"
    _: KW_ONLY
    prior_scale: float | str = 0.3
    num_particles: int = 64
    annealing: str | Annealing = "adaptive"
    move: str | Move | None = None
    num_iterations: int | None = None
    standardize: bool = True
    random_state: Any = None
    precision: str = "highest"
    device: str | None = None
    verbose: bool = False

    @abstractmethod
    def _model(self, targets: np.ndarray) -> tuple[int, str | Likelihood]:
        """Number of outputs of the network, and the likelihood."""

    def _scale(self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Learn the scales of the data."""
        self._features = self._scaler().fit(X, sample_weight=weights)

    def _scaled(self, targets: np.ndarray) -> np.ndarray:
        """Targets as the likelihood takes them."""
        return targets

    def _scaler(self) -> StandardScaler:
        return StandardScaler(with_mean=self.standardize, with_std=self.standardize)

    def _inputs(self, X: np.ndarray) -> np.ndarray:
        """Features as the network takes them."""
        return check_array(self._features.transform(X), dtype=np.float32)

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "result_")
        return self._inputs(validate_data(self, X, reset=False, dtype=REALS))

    def _sample(self, X: np.ndarray, targets: np.ndarray, sample_weight: Any, first: bool) -> _Estimator:
        """Sample the posterior, from the prior or, if this is not the first call, from that of the data before."""
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        X, targets, weights = _distinct(X, targets, weights)
        if first:
            self._scale(X, targets, weights)
        new = self._inputs(X), self._scaled(targets), weights
        data = new if first else tuple(np.concatenate(parts) for parts in zip(self._data, new, strict=True))
        smc = self._sampler(*data[:2])
        initial = None if first else self.result_
        self.result_ = smc.run(*data[:2], progress=bool(self.verbose), weights=data[2], initial=initial)
        self._data = data
        self.log_evidence_ = self.result_.log_evidence
        self.warnings_ = self.result_.warnings
        self.n_iter_ = len(self.result_.history)
        return self

    def _sampler(self, x: np.ndarray, y: np.ndarray) -> fs.SMC:
        num_outputs, likelihood = self._model(y)
        with _said_of("hidden_layer_sizes or activation"):
            network = fs.MLP([x.shape[1], *self.hidden_layer_sizes, num_outputs], self.activation)
        with _said_of("prior_scale"):
            prior = fs.Normal(self.prior_scale)
        return fs.SMC(
            fs.Posterior(network, prior, likelihood, self.precision),
            self.num_particles,
            self._scheme(len(x)),
            self._move(),
            self.num_iterations,
            device=self.device,
            seed=check_random_state(self.random_state).randint(2**31),
        )

    def _scheme(self, num_data: int) -> Annealing:
        if isinstance(self.annealing, Annealing):
            return self.annealing
        if self.annealing not in SCHEMES:
            names = ", ".join(map(repr, SCHEMES))
            raise ValueError(f"annealing is {self.annealing!r}; it must be an annealing scheme or one of {names}")
        return SCHEMES[self.annealing].make(fs, max(1, num_data // BATCHES), "none")

    def _move(self) -> Move | None:
        if self.move is None or isinstance(self.move, Move):
            return self.move
        if self.move not in MOVES:
            raise ValueError(f"move is {self.move!r}; it must be a move or one of {', '.join(map(repr, MOVES))}")
        return getattr(fs, self.move)()


@dataclass(eq=False, repr=False)
class SMCClassifier(ClassifierMixin, _Estimator):
    """Classification by networks that are sampled from their posterior.

    Parameters
    ----------
    hidden_layer_sizes
        Units of each hidden layer; an empty list is a linear model.
    activation
        ``"relu"``, ``"tanh"``, ``"gelu"``, ``"silu"`` or ``"identity"``.
    prior_scale
        Standard deviation of the weights under their prior, or ``"fan_in"``: see `Normal`.
    num_particles
        How many networks, P.
    annealing
        How the data are brought in: a scheme, or ``"adaptive"``, ``"smooth"``, ``"data"``, ``"full"``, ``"tempering"``
        or ``"mini"``, which begin with a twentieth of the data where they begin with a part.
    move
        How the networks move: a move or the name of its class, such as ``"HMC"``; unless given, as `SMC` chooses.
    num_iterations
        As for `SMC`.
    standardize
        Whether to bring features, and the targets of a regression, to mean zero and variance one, by the data of the
        first call.
    random_state
        If it is an integer, the networks are a function of it and the data.
    precision, device
        As for `Posterior` and `SMC`.
    verbose
        Whether to show the progress.

    Attributes
    ----------
    classes_
        Labels, [C].
    result_
        The `Result`: networks, weights and history, in standardized units.
    log_evidence_
        Estimate of log p(y | X), in standardized units; None where the scheme does not end at the posterior.
    n_iter_
        Iterations of the last call.
    warnings_
        What a reader of the predictions must know, a sentence each.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Notes
    -----
    A sample weight multiplies the log-likelihood of its row. Rows that are alike count as one of the sum of their
    weights, and the order of the rows does not matter: a weight of two is a row twice, to the bit. The data are kept,
    since the moves of `partial_fit` need them.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SMCClassifier:
        """Sample the networks: X [n, features], y [n], sample_weight [n]."""
        X, y = validate_data(self, X, y, dtype=REALS)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        return self._sample(X, self._encode(y), sample_weight, first=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> SMCClassifier:
        """Add data: the networks are reweighted by the likelihood of the new rows, resampled, and moved under all rows.

        The first call is `fit`, and needs ``classes``: every label that will come. The scales stay those of the first
        data. ``annealing`` must be a scheme whose batches only grow, as all are but ``"tempering"`` and ``"mini"``.
        """
        first = not hasattr(self, "result_")
        X, y = validate_data(self, X, y, reset=first, dtype=REALS)
        check_classification_targets(y)
        _check_partial_fit_first_call(self, classes)
        return self._sample(X, self._encode(y), sample_weight, first)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior mean of the probabilities of the classes, [n, C]."""
        x = self._checked(X)
        proba = self.result_.predict_proba(x)
        return proba / proba.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Its logarithm, [n, C]."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes, [n]."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _encode(self, y: np.ndarray) -> np.ndarray:
        return LabelEncoder().fit(self.classes_).transform(y).astype(np.int64)

    def _model(self, targets: np.ndarray) -> tuple[int, str]:
        return len(self.classes_), "categorical"


@dataclass(eq=False, repr=False)
class SMCRegressor(MultiOutputMixin, RegressorMixin, _Estimator):
    """Regression by networks that are sampled from their posterior, with normal noise.

    Parameters and attributes are those of `SMCClassifier`, but for ``classes_``, and

    Parameters
    ----------
    noise
        Standard deviation of the targets about the outputs, in units of the targets' own deviation where they are
        standardized; or ``"learned"``: sampled with the weights, under a half-normal prior of scale 1.
    """

    noise: float | str = "learned"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SMCRegressor:
        """Sample the networks: X [n, features], y [n] or [n, outputs], sample_weight [n]."""
        return self._sample(*self._pair(X, y, True), sample_weight, first=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> SMCRegressor:
        """Add data: see `SMCClassifier.partial_fit`."""
        first = not hasattr(self, "result_")
        return self._sample(*self._pair(X, y, first), sample_weight, first)

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior mean of the targets, [n] or [n, outputs], and their standard deviation.

        The deviation is that of a target to be observed: what the networks differ by, and the noise.
        """
        x = self._checked(X)
        mean, square = np.split(self.result_._mean(x, _moments), 2, axis=1)
        scaler = self._outputs
        shape = (len(mean), *self._shape)
        predicted = scaler.inverse_transform(mean).reshape(shape)
        if not return_std:
            return predicted
        variance = np.maximum(square - mean**2, 0) + self._noise_variance()
        return predicted, (np.sqrt(variance) * (1 if scaler.scale_ is None else scaler.scale_)).reshape(shape)

    def _pair(self, X: Any, y: Any, first: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, reset=first, dtype=REALS, multi_output=True, y_numeric=True)
        if first:
            self._shape = y.shape[1:]
        if y.shape[1:] != self._shape:
            raise ValueError(f"y has shape {y.shape}; it must be [n, ...] with {self._shape} as in the first call")
        return X, y.reshape(len(y), -1)

    def _scale(self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        super()._scale(X, targets, weights)
        self._outputs = self._scaler().fit(targets, sample_weight=weights)

    def _scaled(self, targets: np.ndarray) -> np.ndarray:
        return check_array(self._outputs.transform(targets), dtype=np.float32)

    def _model(self, targets: np.ndarray) -> tuple[int, Likelihood]:
        with _said_of("noise"):
            return targets.shape[1], fs.Gaussian(fs.HalfNormal(1.0) if self.noise == "learned" else self.noise)

    def _noise_variance(self) -> float:
        """Its mean over the networks."""
        posterior, weights = self.result_.posterior, self.result_.weights
        used = np.flatnonzero(weights)
        parameters = posterior.unpack(self.result_.particles[used])
        noise = arrays.on_host(parameters.get("noise", posterior.likelihood.noise), "noise")
        return float(np.average(np.broadcast_to(noise, used.shape) ** 2, weights=weights[used]))


def _moments(outputs: Tensor) -> Tensor:
    """Outputs and their squares, [..., 2 K]."""
    import torch

    return torch.cat([outputs.double(), outputs.double() ** 2], dim=-1)


def _distinct(X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that differ and have a weight, in an order of their own, with the sums of their weights."""
    X, y, weights = (part[weights > 0] for part in (X, y, weights))
    number = _numbers(X) * len(y) + _numbers(y)
    _, first, group = np.unique(number, return_index=True, return_inverse=True)
    return X[first], y[first], np.bincount(group, weights)


def _numbers(rows: np.ndarray) -> np.ndarray:
    """A number for each row, the same for the same rows: its rank among their bytes."""
    rows = np.ascontiguousarray(np.column_stack([rows])) + 0  # of zeros there is one
    return np.unique(rows.view(f"V{rows.shape[1] * rows.itemsize}").ravel(), return_inverse=True)[1]


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """Errors name the parameter of the estimator."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
