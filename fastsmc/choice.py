"""Which of several engines of a device serves a call: the fastest, by what was measured on such a card.

``choice.csv`` has a line for each op, row length and card that ``python -m bench.gpu`` measured with more than one
engine. A call goes by the longest row that is not longer than its own; where there is none, or that engine has no room
for a network, to the engine that is preferred. The number of particles decides nothing, so that a particle alone has
the same bits as among others.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fastsmc.arrays import capability

TABLE = Path(__file__).with_name("choice.csv")
NETWORKS = {"log_likelihood": (3, 5), "network_outputs": (1, 3), "trajectory": (3, 7)}
"""Ops on the network that their first argument is, and which others are its precision and x."""


class Line(NamedTuple):
    """On a card of this compute capability the backend is the fastest for an op on rows that are as long, or longer."""

    capability: str
    op: str
    row: int
    backend: str


@cache
def table() -> tuple[Line, ...]:
    """What was measured."""
    with TABLE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return tuple(Line(line["capability"], line["op"], int(line["row"]), line["backend"]) for line in lines)


def fastest(device: str, op: str, row: int) -> str | None:
    """The backend for an op on rows of a length, if something was measured on such a device."""
    known = [line for line in table() if (line.capability, line.op) == (capability(device), op) and line.row <= row]
    return max(known, key=lambda line: line.row).backend if known else None


def serves(engine: ModuleType, op: str, arguments: Sequence[Any]) -> bool:
    """Whether an engine computes a call itself, and does not hand it to another."""
    if op not in NETWORKS or not hasattr(engine, "serves"):
        return True
    precision, x = (arguments[k] for k in NETWORKS[op])
    return bool(engine.serves(arguments[0], precision, len(x)))


class Choice:
    """Engines of one device as one.

    Parameters
    ----------
    device
        Where the arrays are, as torch says it.
    engines
        By the names of their backends; the first is preferred.
    """

    def __init__(self, device: str, engines: Mapping[str, ModuleType]) -> None:
        self.__name__ = " or ".join(engines)
        self._device, self._engines = device, engines

    def __getattr__(self, op: str) -> Callable[..., Any]:
        functions = {name: getattr(engine, op) for name, engine in self._engines.items()}
        preferred = next(iter(functions))

        def call(*arguments: Any) -> Any:
            row = next((int(a.shape[-1]) for a in arguments if hasattr(a, "data_ptr")), 0)
            name = fastest(self._device, op, row)
            if name not in functions or not serves(self._engines[name], op, arguments):
                name = preferred
            return functions[name](*arguments)

        setattr(self, op, call)
        return call
