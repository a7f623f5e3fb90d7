"""What several ops check of their arguments, and the sentences about what an engine found."""

import math
from collections.abc import Mapping
from itertools import combinations
from types import ModuleType
from typing import Any

import numpy as np

from fastsmc import arrays
from fastsmc.arrays import Memory, View
from fastsmc.backends import FINE


def check_float32(dtype: np.dtype, engine: ModuleType) -> None:
    """Refuse float64 particles where the engine is not the reference."""
    if dtype != np.float32 and not engine.__name__.endswith("reference"):
        raise TypeError(f"particles has dtype {dtype}; the engine computes in float32, backend='reference' in float64")


def leading_shape(values: View, name: str) -> tuple[int, ...]:
    """Return the leading dimensions of an array [..., P]."""
    shape = tuple(values.shape)
    if not shape or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; it must have at least one dimension and one entry")
    return shape[:-1]


def read_count(value: int, name: str) -> int:
    """Return a number of particles or samples: from 1 to the limit of the kernels."""
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; it must be an integer")
    if not 0 < value < arrays.LIMIT:
        raise ValueError(f"{name} is {value}; it must be at least 1 and less than 2^31")
    return int(value)


def check_range(name: str, values: View, good: View, what: str) -> None:
    """Refuse the first entry that is not good, and say what all must be."""
    if not good.all():
        index = tuple(map(int, np.argwhere(~np.asarray(good.tolist()))[0]))
        raise ValueError(f"{_at(name, index)} is {values[index]}; {name} must be {what}")


def refuse_overlap(memory: Memory, written: Mapping[str, View], read: Mapping[str, View | None]) -> None:
    """Refuse an array that is written where another one is."""
    views = {name: view for name, view in {**written, **read}.items() if view is not None}
    for first, second in combinations(views, 2):
        if first in written and memory.overlap(views[first], views[second]):
            raise ValueError(f"{second} overlaps {first}; each must have memory of its own")


def shape_text(*sizes: int | str) -> str:
    """Write a shape as NumPy does, with letters for what may vary."""
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


# What engines report, by code: the argument, and the sentence about the entry that they point at.
_SENTENCES = {
    1: ("weights", "{entry} is {value}; weights must be non-negative and finite, with a positive sum"),
    2: ("weights", "{row} has only zeros; weights must have a positive sum"),
    3: ("log_weights", "{entry} is {value}; log weights must be numbers below +inf (-inf is weight zero)"),
    4: ("log_weights", "{row} has only -inf; at least one log weight must be finite"),
    5: ("u", "{entry} is {value}; it must lie in [0, 1)"),
    6: ("a", "{entry} is {value}; ancestors must lie in [0, {particles})"),
    7: ("a", "{entry} is {value}, a slot that is itself overwritten; permute_ancestors(a) can go in place"),
    8: ("a", "a has {size} entries; to gather in place there must be one for each of {particles} particles"),
    10: ("y", "{entry} is {value}; labels must lie in [0, {particles})"),
    9: ("out", "out overlaps particles; it must be particles itself or memory of its own"),
}


def refuse(status: Any, check: bool = True, particles: int = 0, **views: View) -> None:
    """Put the status of an engine, a code and a position in an argument's memory, into a sentence, if it has one.

    ``check`` is whether to wait for a device that has it.
    """
    if status is None or not (check or isinstance(status, tuple)):
        return
    if not isinstance(status, tuple):
        packed = int(status)
        if packed >= FINE:
            return
        status = packed >> 48, packed & (2**48 - 1)
    code, position = status
    name, sentence = _SENTENCES[code]
    view = views[name]
    index = tuple(map(int, np.unravel_index(position, tuple(view.shape))))
    facts = {"entry": _at(name, index), "row": _at(name, index[:-1]), "value": view[index]}
    raise ValueError(sentence.format(**facts, size=math.prod(view.shape), particles=particles))


def _at(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name
