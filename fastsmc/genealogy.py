"""Who descends from whom: lineages of the particles of a run, from the parents at each of its iterations.

A genealogy is what `Result.genealogy` is: int32 [P] for each iteration, rows of the iteration before. Generation 0 is
the particles that the run starts with, draws from the prior as a rule; generation t + 1 is those after iteration t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Lines(NamedTuple):
    """Line segments between generations, as a path with gaps: NaN after every two points."""

    generation: np.ndarray
    place: np.ndarray


def with_descendants(genealogy: Sequence[np.ndarray]) -> np.ndarray:
    """Which particles of each generation have descendants in the last one, bool [T + 1, P]."""
    last = np.zeros((len(genealogy) + 1, len(genealogy[0])), bool)
    last[-1] = True
    return _with_ancestors(genealogy, last)


def order(genealogy: Sequence[np.ndarray]) -> np.ndarray:
    """A rank of each particle in its generation, so that no lines to children cross, int64 [T + 1, P]."""
    rank = np.empty((len(genealogy) + 1, len(genealogy[0])), np.int64)
    rank[0] = np.arange(rank.shape[1])
    for t, parents in enumerate(genealogy):
        rank[t + 1, np.argsort(rank[t, parents], kind="stable")] = np.arange(rank.shape[1])
    return rank


def places(genealogy: Sequence[np.ndarray], rank: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Where to draw the particles of each generation, in the order of their ranks, float64 [T + 1, P].

    One with descendants in the last generation is amid its children that have them; the others fill what is left.
    """
    count = rank.shape[1]
    place = rank.astype(np.float64)
    for t in range(len(genealogy), 0, -1):
        parents = genealogy[t - 1][alive[t]]
        children = np.bincount(parents, minlength=count)[alive[t - 1]]
        middle = np.bincount(parents, place[t, alive[t]], minlength=count)[alive[t - 1]] / children
        known = np.argsort(middle)
        ranks = np.concatenate([[-1], rank[t - 1, alive[t - 1]][known], [count]])
        place[t - 1] = np.interp(rank[t - 1], ranks, np.concatenate([[-1], middle[known], [count]]))
    return place


def lineages(genealogy: Sequence[np.ndarray], most: int = 20_000) -> tuple[Lines, Lines]:
    """Lines from parents to children: those to the last generation, and those that died out.

    Of more lines than `most`, those of every second, third, ... particle without children are drawn, and of all that it
    descends from.
    """
    alive, rank = with_descendants(genealogy), order(genealogy)
    place = places(genealogy, rank, alive)
    stride = -(-len(genealogy) * rank.shape[1] // most)
    ends = (rank % stride == 0) & _childless(genealogy)
    leading, ended = ends & alive, ends & ~alive
    leading, ended = _with_ancestors(genealogy, leading), _with_ancestors(genealogy, ended) & ~alive
    return _lines(genealogy, place, leading), _lines(genealogy, place, ended)


def _childless(genealogy: Sequence[np.ndarray]) -> np.ndarray:
    """Which particles have no children, the last generation being all without."""
    childless = np.ones((len(genealogy) + 1, len(genealogy[0])), bool)
    for t, parents in enumerate(genealogy):
        childless[t, parents] = False
    return childless


def _with_ancestors(genealogy: Sequence[np.ndarray], some: np.ndarray) -> np.ndarray:
    """Some particles, bool [T + 1, P], and all that they descend from."""
    found = some.copy()
    for t in range(len(genealogy), 0, -1):
        found[t - 1, genealogy[t - 1][found[t]]] = True
    return found


def _lines(genealogy: Sequence[np.ndarray], place: np.ndarray, drawn: np.ndarray) -> Lines:
    """The segments that end in the particles that are drawn."""
    generation, particle = np.nonzero(drawn[1:])
    parent = np.stack(genealogy)[generation, particle]
    gap = np.full(len(generation), np.nan)
    ends = np.stack([place[generation, parent], place[generation + 1, particle], gap], axis=1)
    return Lines(np.stack([generation, generation + 1, gap], axis=1).ravel(), ends.ravel())
