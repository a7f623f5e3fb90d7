"""Work as CUDA graphs: captured once it comes back, and replayed from then on.

A launch costs the host some microseconds, and a trajectory of small networks is hundreds of launches that take the
device no longer; a replay is one. What comes back is known by its name, which tells all that its launches are made of,
the addresses of large arrays among it. Small arrays may be elsewhere each time: a graph has its own, filled before a
replay and read behind it.

Scratch of all graphs is one pool, since none leaves there what another needs. Work that takes much of it is not
captured: the pool would keep it, and its launches hide behind one another anyhow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from fastsmc.backends import INTERPRETED

Status = torch.Tensor | None
Tensors = Any
"""A NamedTuple of tensors or None."""
Capture = Callable[[Callable[[], Status]], tuple[Callable[[], None], Status]]


def place(array: torch.Tensor) -> Hashable:
    """Where an array is, and how it lies there."""
    return array.data_ptr(), array.dtype, array.device, *array.shape, *array.stride()


def _kind(array: torch.Tensor | None) -> Hashable:
    return None if array is None else (array.dtype, array.device, *array.shape)


def _copies(arrays: Tensors) -> Tensors:
    return arrays._make(None if array is None else array.clone() for array in arrays)


def _fill(targets: Tensors, sources: Tensors) -> None:
    for target, source in zip(targets, sources, strict=True):
        if target is not None:
            target.copy_(source)


@cache
def _room(device: int) -> dict[str, Any]:
    """Where graphs of a device are captured; torch's own stream for that is of the first device that had one."""
    return {"pool": torch.cuda.graph_pool_handle(), "stream": torch.cuda.Stream(device)}


def capture(work: Callable[[], Status]) -> tuple[Callable[[], None], Status]:
    """The replay of work on the current device, and where its status will be; nothing is computed.

    What other threads do on a device meanwhile does no harm: all launches are this one's.
    """
    graph = torch.cuda.CUDAGraph()
    room = _room(torch.cuda.current_device())
    with torch.cuda.graph(graph, **room, capture_error_mode="thread_local"):
        status = work()
    return graph.replay, status


def _being_captured() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Graph(NamedTuple):
    """A replay and its status, and the small arrays that it reads and fills."""

    replay: Callable[[], None]
    status: Status
    terms: Tensors
    ends: Tensors


class Graphs:
    """The graphs of a process.

    Parameters
    ----------
    capture
        Is given work, and returns its replay and where its status will be; None where there are no graphs.
    most
        Names that are remembered; the least recently used is forgotten.
    scratch
        Bytes of work that is captured, at most.
    """

    def __init__(self, capture: Capture | None, most: int = 32, scratch: int = 1 << 28) -> None:
        self._capture, self._most, self._scratch = capture, most, scratch
        self._known: OrderedDict[Hashable, Graph | None] = OrderedDict()

    def run(
        self, name: Hashable, scratch: int, work: Callable[[Tensors, Tensors], Status], terms: Tensors, ends: Tensors
    ) -> Status:
        """Do the work: twice launch by launch, then as a graph.

        Parameters
        ----------
        name
            Tells the work from all other, but for where ``terms`` and ``ends`` are and what they hold.
        scratch
            Bytes that it takes.
        work
            Reads ``terms``, fills ``ends``, and returns its status.
        """
        if self._capture is None or scratch > self._scratch or _being_captured():
            return work(terms, ends)
        name = name, *map(_kind, (*terms, *ends))
        if name not in self._known:
            status, graph = work(terms, ends), None
        elif (graph := self._known.pop(name)) is None:
            own = _copies(terms), _copies(ends)
            status = work(*own)  # so that every kernel is loaded before the capture
            _fill(ends, own[1])
            graph = Graph(*self._capture(partial(work, *own)), *own)
        else:
            _fill(graph.terms, terms)
            graph.replay()
            _fill(ends, graph.ends)
            status = None if graph.status is None else graph.status.clone()
        self._known[name] = graph
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return status


GRAPHS = Graphs(None if INTERPRETED else capture)
