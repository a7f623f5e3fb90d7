"""Priors of weights, of scales, and what they say of all coordinates of a particle.

The kernels know a normal prior with mean zero and a precision for each coordinate. All others, *the rest*, are added
to the gradient before the kernels see it. A scale that is sampled with the weights is a coordinate of its own, its
logarithm, and the weights are in its units: ``weight = scale * coordinate`` (the non-centred form of Papaspiliopoulos,
Roberts and Skold, 2007).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fastsmc.networks import Parameter

LOG_TWO_PI = math.log(2 * math.pi)


def _positive(name: str, value: Any, also: str = "") -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a positive number{also}")


class Standard(ABC):
    """A density of one coordinate; coordinates are independent. Tensors are [P, n]."""

    curvature: float
    """Mean of minus the second derivative of the log density."""

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Of every coordinate, with its constant."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """Derivative of the log density."""

    @abstractmethod
    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """Draws of the density, from two uniform numbers in [0, 1) each."""


def _normal(u: Tensor, v: Tensor) -> Tensor:
    """Standard normal numbers (Box and Muller, 1958)."""
    return (-2 * (-u).log1p()).sqrt() * (2 * math.pi * v).cos()


@dataclass(frozen=True)
class Positive(Standard):
    """A distribution of a positive number, a scale or a noise, that is sampled by its logarithm, z."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("scale", self.scale)


@dataclass(frozen=True)
class HalfNormal(Positive):
    """The absolute value of a normal number of deviation ``scale``."""

    curvature: ClassVar[float] = 2.0

    def log_density(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return z - 0.5 * (z.exp() / self.scale) ** 2 + math.log(2 / self.scale) - 0.5 * LOG_TWO_PI

    def slope(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return 1 - (z.exp() / self.scale) ** 2

    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """See `Standard`."""
        return _normal(u, v).abs().clamp_min(np.finfo(np.float32).tiny).log() + math.log(self.scale)


@dataclass(frozen=True)
class HalfCauchy(Positive):
    """The absolute value of a Cauchy number of ``scale`` (Gelman, 2006)."""

    curvature: ClassVar[float] = 0.5

    def log_density(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return z - (z.exp() / self.scale).square().log1p() + math.log(2 / (math.pi * self.scale))

    def slope(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return -(z - math.log(self.scale)).tanh()

    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        return (0.5 * math.pi * u.clamp_min(2.0**-25)).tan().log() + math.log(self.scale)


@dataclass(frozen=True)
class LogNormal(Positive):
    """A number whose logarithm is normal: median ``median``, deviation of the logarithm ``scale``."""

    median: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("median", self.median)

    @property
    def curvature(self) -> float:
        """See `Standard`."""
        return self.scale**-2

    def log_density(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return -0.5 * ((z - math.log(self.median)) / self.scale) ** 2 - math.log(self.scale) - 0.5 * LOG_TWO_PI

    def slope(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return (math.log(self.median) - z) / self.scale**2

    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """See `Standard`."""
        return math.log(self.median) + self.scale * _normal(u, v)


@dataclass(frozen=True)
class Prior(Standard):
    """Independent, with median zero, on every weight and bias; the density methods are those of scale one.

    Parameters
    ----------
    scale
        A positive number; ``"fan_in"``: 1 / sqrt(fan-in) of the layer, for its weights and its bias alike (the scale of
        torch's initialisation; Neal, 1996, for the limit of wide layers); or a distribution of positive numbers, such
        as ``HalfNormal(1.0)``: then one scale is sampled with all weights that have this prior.
    """

    scale: float | str | Positive = 1.0

    def __post_init__(self) -> None:
        if self.scale != "fan_in" and not isinstance(self.scale, Positive):
            _positive("scale", self.scale, ", 'fan_in' or a distribution such as HalfNormal(1.0)")

    def scale_of(self, parameter: Parameter) -> float:
        """The scale of the coordinates of a tensor."""
        if isinstance(self.scale, Positive):
            return 1.0
        return parameter.fan_in**-0.5 if self.scale == "fan_in" else float(self.scale)


@dataclass(frozen=True)
class Normal(Prior):
    """Normal: ``scale`` is the standard deviation."""

    curvature: ClassVar[float] = 1.0

    def log_density(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return -0.5 * (z.square() + LOG_TWO_PI)

    def slope(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return -z

    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """See `Standard`."""
        return _normal(u, v)

    def scales(self, network: Any) -> np.ndarray:
        """Standard deviation of every weight of a particle, float64 [d]."""
        return CoordinatePrior(network.parameters, self).scales


@dataclass(frozen=True)
class Laplace(Prior):
    """Double exponential: ``p = exp(-|z|) / 2``, of variance ``2 scale^2``."""

    curvature: ClassVar[float] = 1.0

    def log_density(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return -z.abs() - math.log(2)

    def slope(self, z: Tensor) -> Tensor:
        """See `Standard`; zero at zero."""
        return -z.sign()

    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        return -(-u).log1p() * (1 - 2 * (v < 0.5).to(u.dtype))


@dataclass(frozen=True)
class StudentT(Prior):
    """Student's t with ``df`` degrees of freedom: heavy tails; of one it is Cauchy's."""

    df: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("df", self.df)

    @property
    def curvature(self) -> float:
        """See `Standard`."""
        return (self.df + 1) / (self.df + 3)

    def log_density(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        constant = math.lgamma((self.df + 1) / 2) - math.lgamma(self.df / 2) - 0.5 * math.log(math.pi * self.df)
        return constant - (self.df + 1) / 2 * (z.square() / self.df).log1p()

    def slope(self, z: Tensor) -> Tensor:
        """See `Standard`."""
        return -(self.df + 1) * z / (self.df + z.square())

    def draw(self, u: Tensor, v: Tensor) -> Tensor:
        """Bailey (1994): the polar method without rejection."""
        radius = (self.df * (-2 / self.df * (-u).log1p()).expm1()).sqrt()
        return radius * (2 * math.pi * v).cos()


class Columns(NamedTuple):
    """Coordinates ``begin:end`` of a particle, which have one density, in units of ``scale``."""

    begin: int
    end: int
    density: Standard
    scale: float = 1.0


class CoordinatePrior:
    """The prior of all coordinates of a particle: those of the network's weights, then one for each sampled scale.

    Parameters
    ----------
    parameters
        Of the network.
    prior
        Of every weight, or ``{pattern: prior}``: a tensor has that of the first pattern that its name matches, as in a
        shell (``"*.bias"``), and scales are sampled one for each entry.
    noise
        Distribution of the noise of the likelihood, whose logarithm is the last coordinate; None where it is known.

    Attributes
    ----------
    names
        Of the coordinates beyond the network's weights.
    units
        For each sampled scale, in which columns the weights are multiples of it.
    scales : float64 [D]
        Of each coordinate's density.
    precision : float32 [D]
        Of the normal coordinates; zero elsewhere.
    curvature : float32 [D]
        Mean of minus the second derivative of the log density of each coordinate.
    rest
        The columns whose density is not normal.
    """

    def __init__(
        self, parameters: Sequence[Parameter], prior: Prior | Mapping[str, Prior], noise: Positive | None = None
    ) -> None:
        table = dict(prior) if isinstance(prior, Mapping) else {"*": prior}
        for name, entry in table.items():
            if not isinstance(entry, Prior):
                of = f" of {name!r}" if isinstance(prior, Mapping) else ""
                raise TypeError(f"prior{of} is {entry!r}; it must be Normal, Laplace, StudentT or {{name: prior}}")
        columns, units = [], {key: [] for key, entry in table.items() if isinstance(entry.scale, Positive)}
        unused = set(table)
        for p in parameters:
            key = next((key for key in table if key == p.name or fnmatchcase(p.name, key)), None)
            if key is None:
                raise ValueError(f"prior has no entry for {p.name!r}; there must be one for every parameter, or '*'")
            unused.discard(key)
            columns.append(Columns(p.begin, p.end, table[key], table[key].scale_of(p)))
            if key in units:
                units[key].append(slice(p.begin, p.end))
        if unused and parameters:
            known = ", ".join(p.name for p in parameters)
            raise ValueError(f"prior has an entry {sorted(unused)[0]!r} that no parameter matches: they are {known}")
        end = columns[-1].end if columns else 0
        named = "prior[{}].scale" if isinstance(prior, Mapping) else "prior.scale"
        extra = {named.format(key): table[key].scale for key in units}
        extra |= {} if noise is None else {"noise": noise}
        columns += [Columns(end + k, end + k + 1, density) for k, density in enumerate(extra.values())]
        self.names, self.units = tuple(extra), tuple(units.values())
        self.scales, curvature = np.ones((2, end + len(extra)))
        for begin, end, density, scale in columns:
            self.scales[begin:end] = scale
            curvature[begin:end] = density.curvature / scale**2
        self.curvature = curvature.astype(np.float32)
        self.precision, self.rest, self._constant = self.curvature.copy(), [], 0.0
        for c in columns:
            if isinstance(c.density, Normal):
                self._constant -= (c.end - c.begin) * (math.log(c.scale) + 0.5 * LOG_TWO_PI)
            else:
                self.rest.append(c)
                self.precision[c.begin : c.end] = 0

    @property
    def constant(self) -> float:
        """What the log density is where all energies are zero."""
        return self._constant

    def rest_energy(self, theta: Tensor) -> Tensor | float:
        """Minus the log density of the rest, with its constants: float64 [P]."""
        return -sum(
            (density.log_density(theta[:, begin:end].double() / scale) - math.log(scale)).sum(dim=1)
            for begin, end, density, scale in self.rest
        )

    def add_rest_slope(self, theta: Tensor, grad: Tensor) -> None:
        """Add the derivative of the log density of the rest to a gradient [P, D]."""
        for begin, end, density, scale in self.rest:
            grad[:, begin:end] += density.slope(theta[:, begin:end] / scale) / scale

    def draw_rest(self, theta: Tensor, u: Tensor, v: Tensor) -> None:
        """Overwrite the rest of the coordinates [P, D] by draws, from uniform numbers [P, D] each."""
        for begin, end, density, scale in self.rest:
            theta[:, begin:end] = scale * density.draw(u[:, begin:end], v[:, begin:end])
