"""The data in the order in which they are brought in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, random, sources
from fastsmc.annealing import Target
from fastsmc.arrays import View
from fastsmc.posterior import Posterior
from fastsmc.ranks import ALONE, Alone
from fastsmc.sources import Rows


class Batch(NamedTuple):
    """Features [M, inputs], targets, and the factors [M] of the points' log-likelihoods; None where all are one."""

    x: View | Rows
    y: View
    weights: View | None

    @property
    def size(self) -> int:
        """Number of data points, M."""
        return len(self.y)

    @property
    def streams(self) -> bool:
        """Whether the features have yet to be read."""
        return isinstance(self.x, Rows)

    def take(self, rows: slice | View) -> Batch:
        """Some of the points."""
        return Batch(self.x[rows], self.y[rows], None if self.weights is None else self.weights[rows])

    def blocks(self) -> Iterator[Batch]:
        """Batches in memory that make up this one: itself, unless it streams."""
        if not self.streams:
            yield self
            return
        for rows in self.x.blocks():
            block = self.take(rows)
            yield block._replace(x=block.x.read())


class Data:
    """The data in the order in which they are brought in: a permutation that is a function of the seed.

    x becomes float32 [N, inputs], or stays `Rows`, y what the likelihood takes, both on the posterior's device. With
    ``stratify`` every batch from the first point on holds the classes in the proportions of all the data, as nearly as
    whole numbers can. Points of weight zero are left out. The ``first`` of the others come before the rest. ``like`` is
    an array of the kind that results are to be. The ``ranks`` of a host hold x in memory once.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        posterior: Posterior,
        seed: int,
        stratify: bool = False,
        *,
        weights: Any = None,
        first: int = 0,
        ranks: Alone = ALONE,
    ) -> None:
        rows, y, likelihood, outputs = (
            Rows.of(x),
            arrays.on_host(y, "y"),
            posterior.likelihood,
            posterior.network.num_outputs,
        )
        if y.ndim > 0 and len(rows) != len(y):
            raise ValueError(f"x has {len(rows)} rows, but y has {len(y)}; they must agree")
        factors = None if weights is None else _factors(weights, len(rows))
        used = np.arange(len(rows)) if factors is None else np.flatnonzero(factors)
        if len(used) < len(rows):  # what is left out may hold anything
            y = y.copy()
            y[factors == 0] = y[used[0]]
        targets = likelihood.targets(y, outputs)
        likelihood.check_labels(targets, used, outputs)
        if stratify and not (likelihood.classifies or targets.dtype.kind in "iu"):
            raise ValueError(
                "stratify is True, but the likelihood has no classes; it must be False unless y holds labels"
            )
        if first > len(used):
            raise ValueError(f"x has {len(used)} rows that count; there must be at least the {first} of initial")
        u = random.uniform((1, len(used)), seed=seed, stream=random.Stream.ORDER, backend=posterior.host_backend)[0]
        order = np.concatenate(
            [
                part[np.argsort(_spread(u[part], targets[used[part]]) if stratify else u[part], kind="stable")]
                for part in np.split(np.arange(len(used)), [first])
            ]
        )
        order = used[order]
        self._memory = posterior.memory
        placed, self.like = replace(rows, index=rows.index[order]), sources.like(x)
        self.x = (
            replace(placed, memory=self._memory) if rows is x else self._memory.put(ranks.once_per_host(placed.read))
        )
        self.y = self._memory.put(targets[order])
        self.weights = None if factors is None else self._memory.put(factors[order])
        self.mean_weight = 1.0 if factors is None else float(factors[used].mean(dtype=np.float64))

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, start: int, stop: int) -> Batch:
        """Consecutive points; views, not copies."""
        return Batch(self.x, self.y, self.weights).take(slice(start, stop))

    def batch(self, target: Target) -> Batch:
        """The batch of a target, whose points have the products of their own weights and those of the target."""
        batch = self.rows(target.start, target.stop)
        factors = [w for w in (batch.weights, self._memory.put(target.weights)) if w is not None]
        return batch._replace(weights=reduce(mul, factors) if factors else None)


def _factors(weights: Any, count: int) -> np.ndarray:
    """Factors of the points' log-likelihoods, float32 [N]."""
    given = arrays.on_host(sources.table(weights, "weights"), "weights")
    if given.shape != (count,) or given.dtype.kind not in arrays.REALS:
        raise ValueError(f"weights has shape {given.shape} and dtype {given.dtype}; it must hold {count} numbers")
    with np.errstate(over="ignore"):
        factors = given.astype(np.float32)
    good = (factors >= 0) & (factors < np.inf)
    if not good.all():
        worst = int(np.argmin(good))
        raise ValueError(f"weights[{worst}] is {given[worst]}; every weight must be a finite number, zero or more")
    if not factors.any():
        raise ValueError(f"weights holds {count} zeros; at least one must be positive")
    return factors


def _spread(u: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Keys that sort points by the share of their class that comes before them, in the random order of u."""
    keys = np.empty_like(u)
    classes = np.unique(labels, axis=0, return_inverse=True)[1].ravel() if len(labels) else labels
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        rank = np.argsort(np.argsort(u[members], kind="stable"))
        keys[members] = (rank + u[members]) / len(members)
    return keys
