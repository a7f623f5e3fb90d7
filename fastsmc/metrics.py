"""How good a prediction is: accuracy, negative log-likelihood, calibration, root mean square error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastsmc.checks import check_whole


class Reliability(NamedTuple):
    """Predictions sorted into bins by confidence; empty bins hold NaN."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def accuracy(proba: ArrayLike, y: ArrayLike) -> float:
    """Share of rows whose most probable class is the true one."""
    proba, y = _checked(proba, y)
    return float((proba.argmax(axis=1) == y).mean())


def negative_log_likelihood(proba: ArrayLike, y: ArrayLike) -> float:
    """Mean of -log p(true class), each probability at least float32's smallest normal number."""
    proba, y = _checked(proba, y)
    return float(-np.log(np.maximum(proba[np.arange(len(y)), y], np.finfo(np.float32).tiny)).mean())


def expected_calibration_error(proba: ArrayLike, y: ArrayLike, bins: int = 15) -> float:
    """Mean distance of accuracy from confidence over equally wide bins, weighted by their counts."""
    confidence, correct, count = reliability(proba, y, bins)
    gap = np.abs(np.nan_to_num(correct - confidence))
    return float(gap @ count / count.sum())


def reliability(proba: ArrayLike, y: ArrayLike, bins: int = 15) -> Reliability:
    """Mean confidence, accuracy and count of the predictions in `bins` equally wide bins (lower, upper]."""
    check_whole("bins", bins)
    proba, y = _checked(proba, y)
    confidence = proba.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            np.bincount(place, confidence, bins) / count,
            np.bincount(place, proba.argmax(axis=1) == y, bins) / count,
            count,
        )


class ClassQuality(NamedTuple):
    """How predictions of one class fare; NaN where nothing is predicted or true."""

    label: int
    precision: float
    recall: float
    count: int
    """Rows that are of this class."""
    mistaken: int | None
    """The class that is most often predicted in its place; None if none is."""
    mistakes: int
    """How often."""


def by_class(proba: ArrayLike, y: ArrayLike) -> list[ClassQuality]:
    """Precision, recall and the most frequent mistake of every class."""
    proba, y = _checked(proba, y)
    classes = proba.shape[1]
    confusion = np.bincount(y * classes + proba.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    wrong = confusion - np.diag(hits)
    worst = wrong.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        precision, recall = hits / predicted, hits / true
    return [
        ClassQuality(
            k,
            float(precision[k]),
            float(recall[k]),
            int(true[k]),
            int(worst[k]) if wrong[k, worst[k]] else None,
            int(wrong[k, worst[k]]),
        )
        for k in range(classes)
    ]


def rmse(prediction: ArrayLike, y: ArrayLike) -> float:
    """Root mean square error; [N] and [N, 1] count as the same shape."""
    prediction, y = np.asarray(prediction, np.float64), np.asarray(y, np.float64)
    if prediction.size != y.size or len(prediction) != len(y):
        raise ValueError(f"prediction has shape {prediction.shape}, but y has shape {y.shape}")
    return float(np.sqrt(np.mean((prediction.ravel() - y.ravel()) ** 2)))


def _checked(proba: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    proba, y = np.asarray(proba, np.float64), np.asarray(y)
    if proba.ndim != 2 or y.shape != proba.shape[:1] or proba.size == 0:
        raise ValueError(f"proba has shape {proba.shape} and y {y.shape}, but must have [n, classes] and [n]")
    if not np.isfinite(proba).all():
        raise ValueError("proba holds values that are not finite")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= proba.shape[1]:
        wanted = f"integers from 0 to {proba.shape[1] - 1}"
        raise ValueError(f"y must hold {wanted}, but holds {y.dtype} from {y.min()} to {y.max()}")
    return proba, y
