"""How outputs of a network become probabilities of data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastsmc.arrays import HOST, INTEGERS, REALS, Memory, View


class Likelihood:
    """The density of targets y given the outputs of a network; samples are independent."""

    name: ClassVar[str]
    code: ClassVar[int]
    """The number by which the engines know it."""
    noise: float = 1.0
    needs: ClassVar[str]
    """What a target must be."""

    def targets(self, y: View, num_outputs: int, memory: Memory = HOST, check: bool = True) -> View:
        """Check targets and bring them to the engines' form: int64 [B] or float32 [B, outputs].

        ``check`` is whether to look at their values too, which would wait for a device.
        """
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2 or y.shape[1] != num_outputs:
            raise ValueError(
                f"y has shape {tuple(y.shape)}; it must be [B] or [B, {num_outputs}], as the network's outputs"
            )
        if memory.dtype(y).kind not in REALS:
            raise TypeError(f"y has dtype {y.dtype}; the {self.name} likelihood needs numbers")
        y = memory.cast(y, np.float32)
        if check and not (good := self._acceptable(y)).all():
            row, column = map(int, np.argwhere(~memory.host(good))[0])
            raise ValueError(f"y[{row}, {column}] is {y[row, column]}; the {self.name} likelihood needs {self.needs}")
        return y

    def _acceptable(self, y: View) -> View:
        """Which targets, float32 [B, outputs], have a density."""
        raise NotImplementedError

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

    def targets(self, y: View, num_outputs: int, memory: Memory = HOST, check: bool = True) -> View:
        """See `Likelihood`; the engines check the range of the labels."""
        if memory.dtype(y).kind not in INTEGERS:
            raise TypeError(f"y has dtype {y.dtype}; the categorical likelihood needs integer labels")
        if y.ndim != 1:
            raise ValueError(f"y has shape {tuple(y.shape)}; the categorical likelihood needs one label a sample, [B]")
        return memory.cast(y, np.int64)

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
    needs: ClassVar[str] = "numbers in [0, 1]"

    def _acceptable(self, y: View) -> View:
        return (y >= 0) & (y <= 1)

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
    needs: ClassVar[str] = "finite numbers"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise is {self.noise!r}; it must be a positive standard deviation")

    def _acceptable(self, y: View) -> View:
        return abs(y) < math.inf

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
