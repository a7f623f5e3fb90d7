"""Runs that outlive their process: what is kept in a folder while they go on, and how they are taken up again.

The folder has ``run.json``, the sampler and what its data were; ``data.safetensors``, the data themselves where they
are arrays in memory; and the last two states, ``last.safetensors`` and ``previous.safetensors``. Each of these is a
file that `fastsmc.load` reads, and has beside the result all that the next iteration depends on. Every file is written
elsewhere and renamed, so that no moment at which a process is killed leaves half of one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsmc import arrays, sources
from fastsmc.checks import check_whole
from fastsmc.files import PARTS, describe, encoded, given_or_made, legible, load_state, write_atomically
from fastsmc.ranks import ALONE, Alone
from fastsmc.start import Resumption, Start

if TYPE_CHECKING:
    from fastsmc.result import Result
    from fastsmc.sampler import Sampler

LAST, PREVIOUS = "last.safetensors", "previous.safetensors"
RUN, DATA = "run.json", "data.safetensors"
SAMPLE = 256
"""Rows of what is not in memory that its fingerprint is of."""


@dataclass(frozen=True)
class Checkpoint:
    """How often a run keeps its state.

    Parameters
    ----------
    folder
        Where; it is made where there is none. It must not hold another run.
    seconds
        A state is kept when so many seconds have passed since the last one.
    iterations
        And after so many iterations, if that is given.
    """

    folder: str | Path
    seconds: float = 30.0
    iterations: int | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint | str | Path | None) -> Checkpoint | None:
        """What a user means by ``checkpoint``: a folder, a plan, or nothing."""
        return checkpoint if checkpoint is None or isinstance(checkpoint, cls) else cls(checkpoint)

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds is {self.seconds!r}; it must be a number of seconds, zero or more")
        if self.iterations is not None:
            check_whole("iterations", self.iterations, also=", or None")


@dataclass(frozen=True)
class Description:
    """What ``run.json`` says of a run: its sampler's name and parameters, its data and where they are, its start."""

    sampler: str
    parameters: dict[str, Any]
    data: dict[str, dict[str, Any]]
    fingerprint: str
    started_from: str = Start.origin

    @classmethod
    def of(cls, sampler: Sampler, data: dict[str, Any], started_from: str) -> Description:
        """That of a run on data by the names ``x``, ``y`` and, if there are any, ``weights``."""
        where = {name: _reference(value) for name, value in data.items()}
        return cls(type(sampler).__name__, _parameters(sampler), where, fingerprint(**data), started_from)

    def encoded(self) -> bytes:
        """JSON, with a checksum."""
        held = asdict(self)
        return json.dumps({**held, "sha256": _digest(held)}, indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> Description:
        """That of a folder, if nothing but `encoded` can have written it."""
        path = folder / RUN
        try:
            held = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{folder} holds no run that can go on: {error}") from None
        if not isinstance(held, dict) or held.pop("sha256", None) != _digest(held):
            raise ValueError(f"{path} is damaged: its contents are not those that were written")
        with legible(path):
            description = cls(**held)
            kinds = [(description.sampler, str), (description.parameters, dict), (description.fingerprint, str)]
            kinds += [(description.started_from, str)]
            kinds += [(where, dict) for where in description.data.values()]
            if not all(isinstance(value, kind) for value, kind in kinds) or not {"x", "y"} <= description.data.keys():
                raise TypeError(f"its {', '.join(f.name for f in fields(cls))} are not what a run has")
        return description


def _digest(held: Any) -> str:
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


class Keeper:
    """Keeps the states of a run in its folder, beside the run: another thread writes copies.

    A full disk or a folder that cannot be written does not end the run: the result warns of it. ``checkpoint`` None
    keeps nothing. Of several ranks the first says when, and writes.
    """

    def __init__(self, checkpoint: Checkpoint | str | Path | None, ranks: Alone = ALONE) -> None:
        self._plan = Checkpoint.of(checkpoint)
        self._since, self._due = 0, 0.0
        self._newest: Resumption | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future | None = None
        self._failed: str | None = None
        self._listens = self._terminated = False
        self._ranks = ranks
        if self._plan is not None:
            self._folder = Path(self._plan.folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = ThreadPoolExecutor(1, "fastsmc-checkpoint")

    def begin(self, sampler: Sampler, x: Any, y: Any, weights: Any, start: Start) -> None:
        """Write what the run is, and its data, unless it goes on."""
        if self._plan is None:
            return
        if isinstance(start, Resumption):
            self._newest = start
            return
        if any((self._folder / name).exists() for name in (RUN, LAST, PREVIOUS)):
            raise ValueError(
                f"checkpoint is {str(self._folder)!r}, which holds a run already; it must be another folder, or the "
                "run go on by fastsmc.resume"
            )
        self._ranks.numbers(0)  # all have looked
        if self._ranks.index > 0:
            return
        weights = sources.table(weights, "weights")
        data = {"x": x, "y": y} | ({} if weights is None else {"weights": weights})
        in_memory = {name: value for name, value in data.items() if not isinstance(value, sources.Rows)}
        run = Description.of(sampler, data, start.origin).encoded()
        self._pending = self._writer.submit(self._write_run, _encoded_arrays(in_memory), run)

    def listen(self) -> None:
        """Let SIGTERM interrupt the run as Ctrl-C does, unless the program handles it; `close` ends the process."""
        main = threading.current_thread() is threading.main_thread()
        if self._plan is not None and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)
            self._listens = True

    def offer(self, result: Result) -> None:
        """Keep a state if it is time to; or a copy in memory, for the run may be interrupted where it has no state."""
        if self._plan is None:
            return
        self._since += 1
        enough = self._plan.iterations is not None and self._since >= self._plan.iterations
        if self._ranks.numbers(enough or time.monotonic() >= self._due)[0]:
            self._keep(result)
            self._since, self._due = 0, time.monotonic() + self._plan.seconds
        elif self._ranks.count == 1:  # several do not outlive an interruption
            self._newest = Resumption.of(result)

    def close(self, result: Result | None) -> None:
        """Keep the last state, wait until it is written, and end the process if it was told to."""
        if self._plan is None:
            return
        try:
            if result is not None:
                self._keep(result)
                self._settle(result)
            self._writer.shutdown()
        finally:
            if self._listens:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._terminated:
                signal.raise_signal(signal.SIGTERM)

    def _terminate(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the state is written in peace
        self._terminated = True
        raise KeyboardInterrupt

    def _keep(self, result: Result) -> None:
        self._settle(result)
        if result.state is not None and (self._newest is None or self._newest.result is not result):
            self._newest = Resumption.of(result)
        result.particles = self._ranks.whole(result.particles)
        if self._ranks.index > 0:
            return
        self._pending = self._writer.submit(self._write, encoded(result, self._newest))

    def _settle(self, result: Result) -> None:
        """Wait for what is being written, and warn where that failed."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except OSError as error:
            self._failed = self._failed or f"the checkpoint {self._folder} could not be written: {error}"
        if self._failed is not None and self._failed not in result.warnings:
            result.warnings.append(self._failed)

    def _write_run(self, data: bytes, run: bytes) -> None:
        write_atomically(self._folder / DATA, data)
        write_atomically(self._folder / RUN, run)

    def _write(self, content: bytes) -> None:
        last = self._folder / LAST
        write_atomically(last, content, keep=self._folder / PREVIOUS)


def resume(
    folder: str | Path,
    x: Any = None,
    y: Any = None,
    *,
    weights: Any = None,
    sampler: Sampler | None = None,
    distributed: bool = False,
    network: Any = None,
    prior: Any = None,
    likelihood: Any = None,
    progress: bool = True,
    callback: Callable[[Result], None] | None = None,
) -> Result:
    """Go on with a run that was ended before its time, to the bits of a run that was not.

    Parameters
    ----------
    folder
        What ``checkpoint`` was for `Sampler.run`. The run goes on to keep its states there.
    x, y, weights
        The data, where the folder does not have them: those of torch data sets. Others are in the folder, or in the
        file of their memory map.
    sampler
        The sampler, where the folder cannot describe it: with a scheme or a move of one's own.
    distributed
        As for `SMC`, unless a sampler is given; ranks go on with the run of one process, or of another number of them.
    network, prior, likelihood
        As for `fastsmc.load`.
    progress, callback
        As for `Sampler.run`.

    Returns
    -------
    result
        Of the whole run. If the run had come to its end, that is its last state.

    Raises
    ------
    ValueError
        If the folder holds no run, the data are others than those of the run, or something has to be given.
    """
    folder, given = Path(folder), {"network": network, "prior": prior, "likelihood": likelihood}
    if sampler is not None:
        given = {name: getattr(sampler.posterior, name) for name in PARTS}
    sampler, (x, y, weights), state = opened(folder, x, y, weights, sampler, given, distributed)
    sampler.ranks.numbers(0)  # all have read
    if state is None and sampler.ranks.index == 0:  # it ended before its first iteration
        (folder / RUN).unlink()
    sampler.ranks.numbers(0)
    result = sampler.run(x, y, progress, folder, callback, weights=weights, initial=state)
    back = arrays.kind_of(sources.like(sources.features(x)), "x")
    result.particles, result.log_weights = (
        back(arrays.on_host(getattr(result, name), name)) for name in ("particles", "log_weights")
    )
    return result


def opened(
    folder: Path, x: Any, y: Any, weights: Any, sampler: Sampler | None, given: dict[str, Any], distributed: bool
) -> tuple[Sampler, tuple[Any, Any, Any], Resumption | None]:
    """All that a run goes on with: its sampler, data and last state, from the folder or as they are given."""
    run = Description.read(folder)
    sampler = _sampler(run, folder, given, distributed) if sampler is None else sampler
    held = run.data if x is None else {name: held for name, held in run.data.items() if name == "weights"}
    found = {name: _found(folder, name, reference) for name, reference in held.items()}
    x, y = (found["x"], found["y"]) if x is None else sources.read(x, y)
    weights = found.get("weights") if weights is None else sources.table(weights, "weights")
    if fingerprint(*sources.read(x, y), weights) != run.fingerprint:
        raise ValueError(f"x, y and weights are not the data of the run in {folder}, which go on with it")
    state = _last_state(folder, given)
    if state is None and run.started_from != Start.origin:
        raise ValueError(
            f"{folder} holds a run that started from initial and ended before its first iteration; it must be run "
            "again, with initial and another folder"
        )
    return sampler, (x, y, weights), state


def _sampler(run: Description, folder: Path, given: dict[str, Any], distributed: bool) -> Sampler:
    """The sampler that a folder describes."""
    from fastsmc.persistent import PersistentSMC
    from fastsmc.posterior import Posterior
    from fastsmc.smc import SMC

    kinds = {kind.__name__: kind for kind in (SMC, PersistentSMC)}
    if run.sampler not in kinds:
        raise ValueError(f"the run is of {run.sampler}, which a folder cannot describe; it must be given as sampler=")
    if distributed and run.sampler != SMC.__name__:
        raise ValueError(f"distributed is True, but the run is of {run.sampler}, whose particles are not shared")
    with legible(folder / RUN):
        parameters = dict(run.parameters)
        posterior = dict(parameters.pop("posterior"))
        parts = {name: given_or_made(name, given[name], posterior.pop(name)) for name in PARTS}
        try:
            made = {name: given_or_made(name, None, value) for name, value in parameters.items()}
        except ValueError as error:
            raise ValueError(f"sampler is None, and the folder cannot make it: {error}") from None
        sampler = kinds[run.sampler](Posterior(**parts, **posterior), **made)
    return SMC(sampler.posterior, **made, distributed=True) if distributed else sampler


def _parameters(sampler: Sampler) -> dict[str, Any]:
    posterior = sampler.posterior
    names = (*PARTS, "precision", "backend")
    elsewhere = ("posterior", "backend", "distributed")
    own = [name for name in inspect.signature(type(sampler)).parameters if name not in elsewhere]
    return {
        "posterior": {name: describe(getattr(posterior, name)) for name in names},
        **{name: describe(getattr(sampler, name)) for name in own},
    }


def _last_state(folder: Path, given: dict[str, Any]) -> Resumption | None:
    """The newest whole state; None where there is none yet."""
    failed = None
    for name in (LAST, PREVIOUS):
        try:
            _, state = load_state(folder / name, **given)
        except FileNotFoundError:
            continue
        except ValueError as error:
            failed = failed or error
            continue
        if state is not None:
            return state
        failed = failed or ValueError(f"{folder / name} holds a result, but not the state that its run goes on from")
    if failed is not None:
        raise failed
    return None


def fingerprint(x: Any, y: Any, weights: Any = None) -> str:
    """SHA-256 of the data: all of what is in memory, and rows from here and there of what is not."""
    digest = hashlib.sha256()
    for value in (x, y, weights):
        if isinstance(value, sources.Rows):
            places = np.unique(np.linspace(0, len(value) - 1, SAMPLE).astype(np.int64))
            digest.update(f"{len(value)}x{value.inputs}".encode())
            value = value[places].read()
        elif value is not None:
            digest.update(str(np.shape(value)).encode())
        array = np.empty(0) if value is None else np.ascontiguousarray(arrays.on_host(value, "x"))
        digest.update(array.dtype.str.encode())
        digest.update(array.data)
    return digest.hexdigest()


def _reference(value: Any) -> dict[str, Any]:
    """Where a part of the data is to be found again, and what kind of array it was."""
    if isinstance(value, sources.Rows):
        return {"map": value.source} if value.source else {"given": True}
    torch_device = arrays.device(value) if type(value).__module__.partition(".")[0] == "torch" else None
    return {"device": torch_device}


def _found(folder: Path, name: str, held: dict[str, Any]) -> Any:
    if "given" in held:
        raise ValueError(f"{name} is None, and the folder {folder} does not hold it; it must be given to resume")
    if "map" in held:
        with legible(folder / RUN):
            return sources.mapped(**held["map"])
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        value = load_file(folder / DATA)[name]
    except (KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"{folder / DATA} does not hold {name}: {error}") from None
    device = held.get("device")
    if device is None:
        return value
    import torch

    try:
        return torch.from_numpy(value).to(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name} was on {device!r}, which is not here; x and y must be given to resume") from None


def _encoded_arrays(data: dict[str, Any]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(arrays.on_host(value, name)) for name, value in data.items()})
