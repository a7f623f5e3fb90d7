"""How outputs of a network become probabilities of data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


class Likelihood:
    """The density of targets y given the outputs of a network; samples are independent."""

    name: ClassVar[str]
    code: ClassVar[int]
    """The number by which the engines know it."""
    noise: float = 1.0

    def targets(self, y: np.ndarray, num_outputs: int) -> np.ndarray:
        """Check targets and bring them to the engines' form: int64 [B] or float32 [B, outputs]."""
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2 or y.shape[1] != num_outputs:
            raise ValueError(f"y has shape {y.shape}; it must be [B] or [B, {num_outputs}], as the network's outputs")
        if y.dtype.kind not in "fiub":
            raise TypeError(f"y has dtype {y.dtype}; the {self.name} likelihood needs numbers")
        return np.ascontiguousarray(y, np.float32)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """What is averaged over particles for predictions, from outputs [..., K]."""
        raise NotImplementedError

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """The prediction, from the posterior mean of ``probabilities``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Class labels: ``log softmax(outputs)[y]``, y integer [B] in ``0 .. outputs - 1``."""

    name: ClassVar[str] = "categorical"
    code: ClassVar[int] = 0

    def targets(self, y: np.ndarray, num_outputs: int) -> np.ndarray:
        """See `Likelihood`; the engines check the range of the labels."""
        if y.dtype.kind not in "iu":
            raise TypeError(f"y has dtype {y.dtype}; the categorical likelihood needs integer labels")
        if y.ndim != 1:
            raise ValueError(f"y has shape {y.shape}; the categorical likelihood needs one label a sample, [B]")
        return np.ascontiguousarray(y, np.int64)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Softmax over the last axis, in place."""
        outputs -= outputs.max(axis=-1, keepdims=True)
        np.exp(outputs, out=outputs)
        outputs /= outputs.sum(axis=-1, keepdims=True)
        return outputs

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """The most probable class, [n]."""
        return mean.argmax(axis=-1)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """One or more yes-or-no outputs with logits: y [B] or [B, K], in [0, 1]."""

    name: ClassVar[str] = "bernoulli"
    code: ClassVar[int] = 1

    def targets(self, y: np.ndarray, num_outputs: int) -> np.ndarray:
        """See `Likelihood`."""
        y = super().targets(y, num_outputs)
        bad = ~((y >= 0) & (y <= 1))
        if bad.any():
            row, column = map(int, np.unravel_index(int(np.argmax(bad)), y.shape))
            raise ValueError(
                f"y[{row}, {column}] is {y[row, column]}; the bernoulli likelihood needs numbers in [0, 1]"
            )
        return y

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Probability of yes."""
        return 0.5 * (1 + np.tanh(0.5 * outputs))

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """0 or 1."""
        return (mean > 0.5).astype(np.int64)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Regression with known noise: ``log N(y; outputs, noise^2)``, y [B] or [B, K]."""

    noise: float = 1.0
    name: ClassVar[str] = "gaussian"
    code: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise is {self.noise!r}; it must be a positive standard deviation")

    def targets(self, y: np.ndarray, num_outputs: int) -> np.ndarray:
        """See `Likelihood`."""
        y = super().targets(y, num_outputs)
        if not np.isfinite(y).all():
            row = int(np.argmin(np.isfinite(y).all(axis=1)))
            raise ValueError(f"y[{row}] is {y[row]}; every target must be a finite number")
        return y

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """The mean itself."""
        return outputs

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """The posterior mean."""
        return mean


LIKELIHOODS: dict[str, type[Likelihood]] = {kind.name: kind for kind in (Categorical, Bernoulli, Gaussian)}


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """A likelihood from its name, or itself."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood is {likelihood!r}; it must be one of {', '.join(map(repr, LIKELIHOODS))}")
    return LIKELIHOODS[likelihood]()
