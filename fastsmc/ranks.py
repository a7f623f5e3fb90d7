"""Which process has which particles: one has them all, or those of torch.distributed, its ranks, share them out.

What has one number for each particle is whole on every rank, [P]; what has a row, [P, d], is where the particle is.
Every rank decides the same from the same columns. A sum over particles is one over groups of neighbouring slots, whose
sums are added as a tree that depends on their number alone; ranks have whole groups, so that any number of them
computes the bits of one process.
"""

from __future__ import annotations

import atexit
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastsmc import arrays
from fastsmc.arrays import View

TIMEOUT = timedelta(seconds=300)
"""How long ranks wait for one another, unless torch.distributed was initialised with another time-out."""
SHARED = Path("/dev/shm")
"""Where files are in memory."""
PULSE = 0.5
"""Seconds between two signs of life of a rank."""
VERDICT = "fastsmc/verdict"
"""Key under which the store of the ranks has who is lost."""


class RankError(RuntimeError):
    """A rank has died, or did not answer in time."""


def group_size(num_particles: int) -> int:
    """Slots of a group, about a quarter of the root of P: few, for ranks to have as many each, and cheap to sum."""
    return 2 ** max(2, (num_particles.bit_length() - 5) // 2)


class Alone:
    """One process, which has all particles; and what the ranks of several have in its place."""

    index, count = 0, 1
    """Number of this rank, and of all."""
    first = 0
    """The first slot that is here."""
    here = slice(None)
    """All slots that are here."""
    exchanged = 0
    """Particles that were sent to other ranks so far."""
    sent_bytes = 0
    """All that was sent to other ranks so far, but for whole results and checkpoints."""

    def gather(self, *columns: np.ndarray) -> Sequence[np.ndarray]:
        """Columns of all particles, float64 [P], of those of the particles that are here."""
        return columns

    def whole(self, rows: Any) -> Any:
        """Rows of all particles [P, ...], on every rank, of those that are here; themselves, if they are whole."""
        return rows

    def total(self, parts: View) -> View:
        """Sum [d] of what the groups here and elsewhere add up to, float64 [groups, d]; they are overwritten."""
        return _tree_sum(parts)

    def numbers(self, value: float) -> np.ndarray:
        """One number of each rank, float64 [ranks]."""
        return np.array([value], np.float64)

    def local(self, ancestors: np.ndarray) -> np.ndarray:
        """Ancestors of the particles here, as numbers of rows that are here; those from elsewhere have their own."""
        return ancestors

    def exchange(self, parts: Sequence[View], ancestors: np.ndarray) -> None:
        """Put the rows of ancestors that are elsewhere in their places here, after `local` ones were copied.

        ``ancestors`` [P] leave survivors where they are. A particle goes to a rank once, whatever it has there.
        """

    def once_per_host(self, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that one rank of each host makes, in memory that those of the host share."""
        return make()


ALONE = Alone()


class Ranks(Alone):
    """The ranks of torch.distributed, which is initialised as torchrun's environment says unless it has been.

    Raises
    ------
    ValueError
        If there are more ranks than groups of particles, or nothing says who the ranks are.
    """

    def __init__(self, num_particles: int) -> None:
        import torch
        from torch import distributed

        self._torch, self._distributed, (self._pulse, hosts) = torch, distributed, _join()
        self._leader = hosts.index(hosts[distributed.get_rank()])
        self.index, self.count = distributed.get_rank(), distributed.get_world_size()
        size = group_size(num_particles)
        groups = math.ceil(num_particles / size)
        if self.count > groups:
            raise ValueError(
                f"num_particles is {num_particles}, but there are {self.count} ranks; it must be more particles, or "
                f"at most {groups} ranks, each of which has {size} particles or more"
            )
        self._groups = np.arange(self.count + 1) * groups // self.count
        self._edges = np.minimum(self._groups * size, num_particles)
        self.first, stop = map(int, self._edges[self.index : self.index + 2])
        self.here = slice(self.first, stop)

    def gather(self, *columns: np.ndarray) -> Sequence[np.ndarray]:
        """See `Alone`."""
        mine = np.stack(columns, axis=1).astype(np.float64, copy=False)
        return tuple(np.ascontiguousarray(column) for column in self._share(mine, np.diff(self._edges)).T)

    def whole(self, rows: Any) -> Any:
        """See `Alone`."""
        if len(rows) == self._edges[-1]:
            return rows
        mine, back = arrays.on_host(rows, "rows"), arrays.kind_of(rows, "rows")
        everyone = np.empty((self._edges[-1], *mine.shape[1:]), mine.dtype)
        everyone[self.here] = mine
        with self._watched():
            for rank, (begin, end) in enumerate(pairwise(self._edges)):
                self._distributed.broadcast(self._torch.from_numpy(everyone[begin:end]), rank)
        return back(everyone)

    def total(self, parts: View) -> View:
        """See `Alone`. A rank adds up a part of the columns, for all."""
        widths = np.diff(np.arange(self.count + 1) * parts.shape[1] // self.count)
        cuts = np.cumsum(widths)[:-1]
        tensor = self._torch.as_tensor(parts)
        sent = self._torch.cat([cut.reshape(-1) for cut in tensor.tensor_split(cuts.tolist(), dim=1)])
        groups = np.diff(self._groups)
        mine = self._swap(sent, groups[self.index] * widths, groups * widths[self.index])
        total = self._share(_tree_sum(mine.reshape(groups.sum(), -1)), widths)
        return total if isinstance(parts, self._torch.Tensor) else total.numpy()

    def numbers(self, value: float) -> np.ndarray:
        """See `Alone`."""
        return self._share(np.array([value], np.float64), np.ones(self.count, np.int64))

    def local(self, ancestors: np.ndarray) -> np.ndarray:
        """See `Alone`."""
        mine = ancestors[self.here] - self.first
        own = np.arange(len(mine))
        return np.where((mine >= 0) & (mine < len(mine)), mine, own)

    def exchange(self, parts: Sequence[View], ancestors: np.ndarray) -> None:
        """See `Alone`."""
        owner = np.repeat(np.arange(self.count), np.diff(self._edges))
        moving = np.flatnonzero(owner[ancestors] != owner)
        pairs = np.unique(owner[moving] * len(owner) + ancestors[moving])
        reader, row = np.divmod(pairs, len(owner))  # in the order of readers, then of rows
        going, coming = owner[row] == self.index, reader == self.index
        slots = moving[owner[moving] == self.index]
        places = np.searchsorted(row[coming], ancestors[slots])
        counts = [np.bincount(who, minlength=self.count) for who in (reader[going], owner[row[coming]])]
        leaving, arriving = row[going] - self.first, slots - self.first
        for part in parts:
            tensor = self._torch.as_tensor(part)
            tensor[arriving] = self._swap(tensor[leaving], *counts)[places]
        self.exchanged += len(leaving)

    def once_per_host(self, make: Callable[[], np.ndarray]) -> np.ndarray:
        """See `Alone`."""
        leads, folder = self.index == self._leader, SHARED if SHARED.is_dir() else Path(tempfile.gettempdir())
        path = folder / f"fastsmc-{int(self.numbers(os.getpid())[self._leader])}.npy"
        try:
            if leads:
                np.save(path, make())
            self.numbers(0)  # it is written
            array = np.asarray(np.load(path, mmap_mode="c"))
            self.numbers(0)  # all have it
        finally:
            if leads:
                path.unlink(missing_ok=True)
        return array

    def _share(self, mine: Any, sizes: np.ndarray) -> Any:
        """What every rank has, one after the other, on all ranks, of the sizes that they have."""
        tensor = self._torch.as_tensor(mine)
        received = self._swap(self._torch.cat([tensor] * self.count), np.full(self.count, len(tensor)), sizes)
        return received.numpy() if isinstance(mine, np.ndarray) else received

    def _swap(self, sent: Any, sizes: np.ndarray, received: np.ndarray) -> Any:
        """Send each rank its part of a tensor, of sizes that all ranks know, and receive theirs."""
        out = sent.new_empty((int(received.sum()), *sent.shape[1:]))
        self.sent_bytes += (int(sizes.sum() - sizes[self.index])) * sent[:1].nbytes
        with self._watched():
            self._distributed.all_to_all_single(out, sent, received.tolist(), sizes.tolist())
        return out

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Say which rank is gone, where one is."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(self._pulse.verdict(error)) from error


class Pulse:
    """Signs of life: every rank gives them, in a thread, and anyone can see whose have stopped."""

    def __init__(self, store: Any, index: int, ranks: int) -> None:
        self._store, self._index, self._ranks, self._heard = store, index, ranks, ""
        self._give(0)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="fastsmc-pulse", daemon=True)
        self._thread.start()
        atexit.register(self.end)  # a thread that is in the store as the interpreter ends takes the process down

    def end(self) -> None:
        """Give no more signs of life."""
        self._ends.set()
        self._thread.join(4 * PULSE)

    def _give(self, number: int) -> None:
        self._store.set(f"fastsmc/pulse/{self._index}", str(number))

    def _go_on(self) -> None:
        try:
            for number in count(1):
                if self._ends.wait(PULSE):
                    return
                self._give(number)
                if self._store.check([VERDICT]):
                    self._heard = self._store.get(VERDICT).decode()
        except RuntimeError:  # the store is gone, and with it the run
            return

    def _seen(self) -> list[bytes]:
        return [self._store.get(f"fastsmc/pulse/{rank}") for rank in range(self._ranks)]

    def verdict(self, error: Exception) -> str:
        """Which ranks are gone, after an error of a collective; as the first rank said that had one."""
        advice = "the run goes on from its last checkpoint by fastsmc.resume, on any number of ranks"
        try:
            before = self._seen()
            time.sleep(4 * PULSE)
            gone = [rank for rank, (a, b) in enumerate(zip(before, self._seen(), strict=True)) if a == b]
            names = ", ".join(map(str, gone))
            said = f"rank {names} of {self._ranks} has died or hangs" if gone else f"the ranks lost each other: {error}"
            said = self._store.compare_set(VERDICT, "", said).decode()
            if self._index == 0:  # the store goes with it, as a rule
                time.sleep(4 * PULSE)
        except RuntimeError:
            said = self._heard or f"rank 0 of {self._ranks}, or what had started it, has died"
        return f"{said}; {advice}"


@cache
def _pulse(group: Any) -> Pulse:
    """That of a process group."""
    from torch import distributed

    return Pulse(
        distributed.distributed_c10d._get_default_store(), distributed.get_rank(), distributed.get_world_size()
    )


def _join() -> tuple[Pulse, list[str]]:
    """Be one of the ranks, and know their hosts; take no more threads than there are cores for each on this one."""
    import torch
    from torch import distributed

    from fastsmc.environment import cores

    if not distributed.is_available():
        raise ValueError("distributed is True, but this torch was built without torch.distributed")
    if not distributed.is_initialized():
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(
                f"distributed is True, but {missing[0]} is not in the environment; the processes must be started by "
                "torchrun, or initialise torch.distributed themselves"
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    pulse, mine = _pulse(distributed.group.WORLD), (socket.gethostname(), cores())
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(mine[1]) // everyone.count(mine)))
    return pulse, [host for host, _ in everyone]


def _tree_sum(parts: View) -> View:
    """Sum of rows [n, d] in an order that depends on n alone; they are overwritten."""
    while (rows := len(parts)) > 1:
        half = rows // 2
        parts[:half] += parts[rows - half :]
        parts = parts[: rows - half]
    return parts[0]
