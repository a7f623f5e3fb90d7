"""How outputs of a network become probabilities of data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastsmc.arrays import HOST, INTEGERS, REALS, Memory, View
from fastsmc.priors import Positive

if TYPE_CHECKING:
    from torch import Tensor


class Likelihood:
    """The density of targets y given the outputs of a network; samples are independent."""

    name: ClassVar[str]
    code: ClassVar[int | None]
    """The number by which the engines know it; None if they do not."""
    noise: float | Positive = 1.0
    needs: ClassVar[str]
    """What a target must be."""
    classifies: ClassVar[bool] = False
    """Whether predictions are probabilities of classes."""

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

    def check_labels(self, targets: np.ndarray, rows: np.ndarray, num_outputs: int) -> None:
        """Refuse in some rows of ``targets`` what is left to the engines to refuse, so that nobody waits for them."""

    def _acceptable(self, y: View) -> View:
        """Which targets, float32 [B, outputs], have a density."""
        raise NotImplementedError

    def in_kernels(self) -> Likelihood:
        """The same, for those who call the kernels directly.

        Raises
        ------
        ValueError
            If they do not know it.
        """
        if self.code is None or isinstance(self.noise, Positive):
            raise ValueError(f"likelihood is {self}; it must be one of the kernels' own, with a noise that is known")
        return self

    @property
    def known(self) -> Likelihood:
        """The same, with a noise of one where its noise is sampled."""
        return self

    def constant(self, y: View, weights: View | None) -> float | View:
        """What the engines leave out of the log-likelihood of a batch, which depends on its targets alone."""
        return 0.0

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log density of every sample [..., B], from outputs [..., B, K] and targets in the engines' form."""
        raise NotImplementedError

    def expectation(self, outputs: Tensor) -> Tensor:
        """What predictions average over particles, from outputs [..., K]: these, unless said otherwise."""
        return outputs

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """The prediction, from the posterior mean of ``expectation``; that mean, unless said otherwise."""
        return mean


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Class labels: ``log softmax(outputs)[y]``, y integer [B] in ``0 .. outputs - 1``."""

    name: ClassVar[str] = "categorical"
    classifies: ClassVar[bool] = True
    code: ClassVar[int] = 0

    def targets(self, y: View, num_outputs: int, memory: Memory = HOST, check: bool = True) -> View:
        """See `Likelihood`; the engines check the range of the labels."""
        if memory.dtype(y).kind not in INTEGERS:
            raise TypeError(f"y has dtype {y.dtype}; the categorical likelihood needs integer labels")
        if y.ndim != 1:
            raise ValueError(f"y has shape {tuple(y.shape)}; the categorical likelihood needs one label a sample, [B]")
        return memory.cast(y, np.int64)

    def check_labels(self, targets: np.ndarray, rows: np.ndarray, num_outputs: int) -> None:
        """See `Likelihood`."""
        bad = rows[(targets[rows] < 0) | (targets[rows] >= num_outputs)]
        if len(bad):
            raise ValueError(f"y[{bad[0]}] is {targets[bad[0]]}; labels must lie in [0, {num_outputs})")

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood`."""
        labels = y.expand(outputs.shape[:-1])[..., None]
        return outputs.log_softmax(-1).gather(-1, labels)[..., 0]

    def expectation(self, outputs: Tensor) -> Tensor:
        """The probabilities of the classes."""
        return outputs.softmax(-1)

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """The most probable class, [n]."""
        return mean.argmax(axis=-1)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """One or more yes-or-no outputs with logits: y [B] or [B, K], in [0, 1]."""

    name: ClassVar[str] = "bernoulli"
    classifies: ClassVar[bool] = True
    code: ClassVar[int] = 1
    needs: ClassVar[str] = "numbers in [0, 1]"

    def _acceptable(self, y: View) -> View:
        return (y >= 0) & (y <= 1)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood`."""
        from torch.nn.functional import softplus

        return (y * outputs - softplus(outputs)).sum(-1)

    def expectation(self, outputs: Tensor) -> Tensor:
        """Probability of yes."""
        return outputs.sigmoid()

    def decide(self, mean: np.ndarray) -> np.ndarray:
        """0 or 1."""
        return (mean > 0.5).astype(np.int64)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Regression: ``log N(y; outputs, noise^2)``, y [B] or [B, K].

    Parameters
    ----------
    noise
        The standard deviation; or a distribution of positive numbers, such as ``HalfNormal(1.0)``: then it is sampled
        with the weights.
    """

    noise: float | Positive = 1.0
    name: ClassVar[str] = "gaussian"
    code: ClassVar[int | None] = 2
    needs: ClassVar[str] = "finite numbers"

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Positive) and not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(
                f"noise is {self.noise!r}; it must be a positive standard deviation or a distribution such as "
                "HalfNormal(1.0)"
            )

    def _acceptable(self, y: View) -> View:
        return abs(y) < math.inf

    @property
    def known(self) -> Gaussian:
        """See `Likelihood`."""
        return Gaussian() if isinstance(self.noise, Positive) else self

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood`; of a known noise."""
        z = (y - outputs) / self.noise
        return -0.5 * (z * z).sum(-1) - outputs.shape[-1] * (math.log(self.noise) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts with log rates: ``y * outputs - exp(outputs) - log y!``, y [B] or [B, K], whole numbers."""

    name: ClassVar[str] = "poisson"
    code: ClassVar[int | None] = 3
    needs: ClassVar[str] = "whole numbers of at least 0"

    def _acceptable(self, y: View) -> View:
        return (y >= 0) & (y < math.inf) & (y % 1 == 0)

    def constant(self, y: View, weights: View | None) -> View:
        """See `Likelihood`: minus the sum of the log factorials, float64 []."""
        import torch

        each = torch.lgamma(torch.as_tensor(y).double() + 1).sum(-1)
        total = -(each if weights is None else each * torch.as_tensor(weights)).sum()
        return total.numpy() if isinstance(y, np.ndarray) else total

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood`."""
        return (y * outputs - outputs.exp() - (y + 1).lgamma()).sum(-1)

    def expectation(self, outputs: Tensor) -> Tensor:
        """The rate."""
        return outputs.exp()


@dataclass(frozen=True)
class Custom(Likelihood):
    """Any density that torch can differentiate.

    Parameters
    ----------
    function
        Of outputs [B, K] and y [B, ...], as it was given; returns the log density of every sample, [B]. It must be made
        of torch's functions that ``vmap`` knows.
    """

    function: Callable[[Any, Any], Any]
    name: ClassVar[str] = "custom"
    code: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"likelihood is {self.function!r}; it must be a name, a Likelihood or a function")

    def targets(self, y: View, num_outputs: int, memory: Memory = HOST, check: bool = True) -> View:
        """See `Likelihood`: whole numbers as int64, others as float32."""
        kind = memory.dtype(y).kind
        if y.ndim == 0 or kind not in REALS:
            raise TypeError(f"y has shape {tuple(y.shape)} and dtype {y.dtype}; it must hold numbers, [B, ...]")
        return memory.cast(y, np.int64 if kind in INTEGERS else np.float32)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Likelihood`."""
        each = self.function(outputs, y)
        if each.shape != outputs.shape[:-1]:
            raise ValueError(
                f"likelihood returns {tuple(each.shape)} for outputs {tuple(outputs.shape)}; it must return the log "
                f"density of every sample, {tuple(outputs.shape[:-1])}"
            )
        return each


LIKELIHOODS: dict[str, type[Likelihood]] = {kind.name: kind for kind in (Categorical, Bernoulli, Gaussian, Poisson)}


def as_likelihood(likelihood: str | Likelihood | Callable[[Any, Any], Any]) -> Likelihood:
    """A likelihood from its name or its function, or itself."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        return Custom(likelihood)
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood is {likelihood!r}; it must be one of {', '.join(map(repr, LIKELIHOODS))}")
    return LIKELIHOODS[likelihood]()
