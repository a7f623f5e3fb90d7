"""Which engine serves the ops on which device, and why not another.

An engine has a module with one function per op. Each takes C-contiguous arrays of the engine's memory, writes its
results into arrays that the caller allocated, and returns None or the status of the first entry that it cannot accept:
``(code, position)``, or, from a device that nobody waits for, what `FINE` says.
"""

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

from fastsmc import arrays
from fastsmc.choice import Choice

FINE = 2**62
"""What a status on a device holds, int64 [1], where all is well; else the smallest ``code << 48 | position``."""
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")
"""Whether Triton's kernels run in its interpreter, on the host: what Triton makes of the variable at its import."""


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    Attributes
    ----------
    name : str
        What ``backend=`` and ``FASTSMC_BACKEND`` call it.
    device : str
        The type of device whose memory it reads.
    module : str or None
        Where its functions are, and perhaps ``available``, which says whether there is a device; None if there is no
        such module.
    missing : str
        The reason to give where there is no module.
    tensors : bool
        Whether its arrays are torch tensors, or NumPy arrays.
    """

    name: str
    device: str
    module: str | None
    missing: str = ""
    tensors: bool = False

    def available(self) -> tuple[bool, str]:
        """Whether it can be used here, and the reason if not."""
        if self.module is None:
            return False, self.missing
        try:
            module = import_module(self.module)
        except ImportError as error:
            return False, f"{self.module} cannot be imported: {error}"
        if hasattr(module, "available") and not (state := module.available())[0]:
            return state
        if self.device == "cuda" and not import_module("torch").cuda.is_available():
            return False, "torch finds no CUDA device"
        return True, ""


class Engine(NamedTuple):
    """The functions of a backend, and the memory whose arrays they take."""

    ops: ModuleType | Choice
    memory: arrays.Memory


def _cuda() -> Backend:
    """The engine of CUDA C++, on the host where it was built as its host twin."""
    if find_spec("fastsmc._cuda") is None:
        return Backend("cuda", "cuda", None, "this package was built without it: no nvcc, or FASTSMC_CUDA=OFF")
    return Backend("cuda", import_module("fastsmc._cuda").device(), "fastsmc.cuda", tensors=True)


# In order of preference on a device, but for the reference, which is used only when it is asked for.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("reference", "cpu", "fastsmc.reference"),
        Backend("cpu", "cpu", "fastsmc._cpu"),
        Backend("triton", "cpu" if INTERPRETED else "cuda", "fastsmc.kernels.engine", tensors=True),
        _cuda(),
    )
}


def names() -> tuple[str, ...]:
    """Every backend that a function's ``backend`` may name."""
    return tuple(BACKENDS)


def choose(backend: str | None = None, device: str = "cpu") -> Engine:
    """Return the engine for arrays on a device.

    Parameters
    ----------
    backend : str, optional
        The name of a backend; without it ``FASTSMC_BACKEND`` decides, read once, and then the device.
    device : str
        Where the arrays are (see `arrays.device`).

    Raises
    ------
    ValueError
        If the name is unknown, or that backend is not available or does not read arrays on this device.
    """
    return _choose(backend, arrays.numbered(device))


@cache
def _choose(backend: str | None, device: str) -> Engine:
    argument, name = ("backend", backend) if backend else ("FASTSMC_BACKEND", os.environ.get("FASTSMC_BACKEND"))
    kind = device.partition(":")[0]
    if not name:
        candidates = (b for b in list(BACKENDS.values())[1:] if b.device == kind and b.available()[0])
        if (first := next(candidates, None)) is None:
            raise ValueError(f"no backend reads arrays on {device}: {reasons(kind)}")
        if kind == "cpu" or not (others := list(candidates)):
            return _engine(first, device)
        engines = {b.name: _engine(b, device) for b in (first, *others)}
        modules = {name: engine.ops for name, engine in engines.items()}
        return Engine(Choice(device, modules), engines[first.name].memory)
    if name not in BACKENDS:
        raise ValueError(f"{argument} is {name!r}; it must be one of {', '.join(map(repr, BACKENDS))}")
    chosen = BACKENDS[name]
    ok, reason = chosen.available()
    if not ok:
        usable = ", ".join(repr(b.name) for b in BACKENDS.values() if b.available()[0])
        raise ValueError(f"{argument} is {name!r}, but {reason}; available here: {usable}")
    if chosen.device != kind:
        raise ValueError(f"{argument} is {name!r}, which reads arrays on {chosen.device}, not on {device}")
    return _engine(chosen, device)


def _engine(backend: Backend, device: str) -> Engine:
    memory = arrays.Device(device) if backend.tensors else arrays.HOST
    return Engine(import_module(str(backend.module)), memory)


def describe(backend: str | None = None, device: str = "cpu") -> str:
    """The engine that `choose` returns, and what it computes with."""
    module = choose(backend, device).ops.__name__
    name = next((b.name for b in BACKENDS.values() if b.module == module), module)
    return f"{name}, {_DETAILS[name]()}" if name in _DETAILS else name


def reasons(device: str) -> str:
    """Why the backends of a device are not available, in one line."""
    backends = [b for b in BACKENDS.values() if b.device == device]
    lines = [f"{b.name}: {b.available()[1]}" for b in backends if not b.available()[0]]
    return "; ".join(lines) or f"no backend of this version serves {device}"


@dataclass(frozen=True)
class Report:
    """What ``fastsmc doctor`` shows of one backend."""

    name: str
    device: str
    ok: bool
    reason: str
    detail: str


def _instruction_sets() -> str:
    engine = import_module("fastsmc._cpu")
    return f"instruction set {engine.simd_level()} of {', '.join(engine.simd_levels())}"


def _triton() -> str:
    where = "in its interpreter" if INTERPRETED else f"on {import_module('torch').cuda.get_device_name()}"
    return f"Triton {import_module('triton').__version__} {where}"


def _cuda_build() -> str:
    return import_module("fastsmc._cuda").built_with()


_DETAILS = {"cpu": _instruction_sets, "triton": _triton, "cuda": _cuda_build}


def report() -> list[Report]:
    """Every backend with its state here, and what it computes with."""
    states = [(backend, *backend.available()) for backend in BACKENDS.values()]
    details = [_DETAILS[b.name]() if ok and b.name in _DETAILS else "" for b, ok, _ in states]
    return [
        Report(b.name, b.device, ok, reason, detail) for (b, ok, reason), detail in zip(states, details, strict=True)
    ]
