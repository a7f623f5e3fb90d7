"""Arrays of any library as views that an engine takes, and results back as the same kind.

The views of an engine on the host are NumPy arrays, those of an engine on a device torch tensors. NumPy arrays and
torch tensors are read in place, others through DLPack or the buffer protocol; what is not C-contiguous and aligned is
copied. Torch is imported where a device is meant, and not before: otherwise a tensor can only come from a program that
has done so already.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

View = Any
"""A NumPy array or a torch tensor."""
Back = Callable[[View], Any]

FLOAT64 = np.dtype(np.float64)
FLOATS = (np.dtype(np.float32), FLOAT64)
INTEGERS = "iu"
REALS = "fiub"
"""Kinds of NumPy types."""
BFLOAT16 = np.dtype([("bfloat16", np.int16)])
"""Two opaque bytes, for a type that NumPy lacks: moved by gather_particles, refused as numbers."""

LIMIT = 2**31
"""Resampling takes fewer particles and samples than this."""

_DLPACK_DEVICES = {2: "cuda", 13: "cuda"}  # 13: memory that CUDA manages


def device(array: Any) -> str:
    """Where an array is, as torch says it: ``"cpu"``, ``"cuda:0"``, ..."""
    if type(array) is np.ndarray:
        return "cpu"
    if (torch := sys.modules.get("torch")) is not None and isinstance(array, torch.Tensor):
        return "cpu" if array.is_cpu else str(array.device)
    if hasattr(array, "__dlpack_device__"):
        kind, index = array.__dlpack_device__()
        return f"{_DLPACK_DEVICES[int(kind)]}:{index}" if int(kind) in _DLPACK_DEVICES else "cpu"
    return "cpu"


def numbered(device: str) -> str:
    """The same device, by its number if it has one: ``"cuda"`` is the current one."""
    if device != "cuda" or find_spec("torch") is None:
        return device
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else device


@cache
def capability(device: str) -> str:
    """The compute capability of a CUDA device, as ``"9.0"``; empty for another device."""
    if not device.startswith("cuda"):
        return ""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def on_host(array: Any, name: str) -> np.ndarray:
    """The numbers of an array as a C-contiguous NumPy array; copied from where else it is."""
    memory = HOST if (there := device(array)) == "cpu" else Device(there)
    return memory.host(memory.read(array, name)[0])


def kind_of(array: Any, name: str) -> Back:
    """What makes a NumPy array one of the kind of another, where that is."""
    if (there := device(array)) == "cpu":
        return HOST.read(array, name)[1]
    memory = Device(there)
    back = memory.read(array, name)[1]
    return lambda view: back(memory.put(view))


class Memory(ABC):
    """How the arrays of an engine are viewed and made."""

    def read(self, array: Any, name: str) -> tuple[View, Back]:
        """View an array where it is, in place where its memory allows.

        Parameters
        ----------
        array : array_like
            NumPy array, torch tensor, anything with ``__dlpack__`` or a buffer, or nested sequences of numbers.
        name : str
            What error messages call it.

        Returns
        -------
        view : numpy.ndarray or torch.Tensor
            C-contiguous and aligned; possibly read-only.
        back : callable
            Makes an array of the given kind from a view.
        """
        view, back = self._view(array, name)
        return self.contiguous(view), back

    def read_floats(self, array: Any, name: str) -> tuple[View, Back]:
        """As ``read``, for rows of float32 or float64 only."""
        view, back = self._view(array, name)
        if self.dtype(view) not in FLOATS:
            raise TypeError(f"{name} has dtype {_shown(array, self.dtype(view))}; it must be float32 or float64")
        return self.contiguous(_rows(view, name)), back

    def read_integers(self, array: Any, name: str) -> tuple[View, Back]:
        """As ``read``, for rows of integers of any width, as int64."""
        view, back = self._view(array, name)
        if self.dtype(view).kind not in INTEGERS:
            raise TypeError(f"{name} has dtype {_shown(array, self.dtype(view))}; it must be an integer type")
        return self.cast(_rows(view, name), np.int64), back

    def read_numbers(self, array: Any, name: str) -> View:
        """As ``read``, for numbers that are to be cast."""
        view, _ = self._view(array, name)
        if self.dtype(view).kind not in REALS:
            raise TypeError(f"{name} has dtype {_shown(array, self.dtype(view))}; it must hold real numbers")
        return view

    @abstractmethod
    def read_output(self, array: Any, name: str) -> View:
        """View an array that is to be written: its own memory, since what is written to a copy is lost."""

    @abstractmethod
    def dtype(self, view: View) -> np.dtype:
        """The type of the entries, as NumPy names it."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any) -> View:
        """New memory, to be written."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> View:
        """New memory that holds zeros."""
        view = self.empty(shape, dtype)
        view[...] = 0
        return view

    @abstractmethod
    def contiguous(self, view: View) -> View:
        """A view whose rows stand one after the other, copied if they do not."""

    @abstractmethod
    def cast(self, view: View, dtype: Any) -> View:
        """The same numbers in another type, C-contiguous; itself if nothing changes."""

    @abstractmethod
    def overlap(self, first: View, second: View) -> bool:
        """Whether two views may share memory."""

    @abstractmethod
    def host(self, view: View) -> np.ndarray:
        """The numbers as a NumPy array."""

    @abstractmethod
    def hosts(self, views: Sequence[View]) -> Sequence[np.ndarray]:
        """The same of several views of one shape and type, for which a device is waited for once."""

    @abstractmethod
    def put(self, array: np.ndarray | None) -> View | None:
        """The numbers of a NumPy array as a view; None stays None."""

    @abstractmethod
    def copy(self, view: View) -> View:
        """The same numbers in memory of their own."""

    @abstractmethod
    def concatenate(self, views: Sequence[View]) -> View:
        """The rows of several views."""

    @abstractmethod
    def energies(self, rows: View, weights: View) -> View:
        """``sum(weights * row**2) / 2`` of rows [P, d], float64 [P]."""

    def group_sums(self, rows: View, size: int) -> View:
        """Sums of ``size`` neighbouring rows [P, d] each, the last of what is left: float64 [groups, d]."""
        sums = self.copy(rows[::size])
        for others in (rows[k::size] for k in range(1, size)):
            sums[: len(others)] += others
        return self.cast(sums, np.float64)

    @abstractmethod
    def _view(self, array: Any, name: str) -> tuple[View, Back]:
        """An array where it is, contiguous or not, and what makes another of its kind."""


class Host(Memory):
    """Host memory, as NumPy arrays."""

    dtype = staticmethod(attrgetter("dtype"))
    empty = staticmethod(np.empty)

    def read_floats(self, array: Any, name: str) -> tuple[np.ndarray, Back]:
        """See `Memory`."""
        if type(array) is float:  # such as the one number of systematic resampling
            return np.array(array), _same
        view, back = self._view(array, name)
        if (dtype := view.dtype) is not FLOAT64 and dtype not in FLOATS:
            raise TypeError(f"{name} has dtype {_shown(array, self.dtype(view))}; it must be float32 or float64")
        flags = view.flags
        if view.size < LIMIT and flags.c_contiguous and flags.aligned:  # as a rule: small calls are counted in calls
            return view, back
        return self.contiguous(_rows(view, name)), back

    def read_output(self, array: Any, name: str) -> np.ndarray:
        """See `Memory`."""
        view, _ = self.read(array, name)
        if not view.flags.writeable:
            raise ValueError(f"{name} is read-only; it must be writeable")
        if not (isinstance(array, np.ndarray) and view is array) and not _in_place(array, view):
            raise ValueError(f"{name} is not a C-contiguous array; results cannot be written into it")
        return view

    def contiguous(self, view: np.ndarray) -> np.ndarray:
        """See `Memory`."""
        flags = view.flags
        return view if flags.c_contiguous and flags.aligned else np.array(view, order="C")

    def cast(self, view: np.ndarray, dtype: Any) -> np.ndarray:
        """See `Memory`."""
        return self.contiguous(view.astype(dtype, copy=False))

    def overlap(self, first: np.ndarray, second: np.ndarray) -> bool:
        """See `Memory`."""
        return np.may_share_memory(first, second)

    def host(self, view: np.ndarray) -> np.ndarray:
        """See `Memory`."""
        return view

    def hosts(self, views: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """See `Memory`."""
        return views

    def put(self, array: np.ndarray | None) -> np.ndarray | None:
        """See `Memory`."""
        return array

    def copy(self, view: np.ndarray) -> np.ndarray:
        """See `Memory`."""
        return view.copy()

    def concatenate(self, views: Sequence[np.ndarray]) -> np.ndarray:
        """See `Memory`."""
        return np.concatenate(views)

    def energies(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `Memory`."""
        return 0.5 * np.einsum("pd,pd,d->p", rows, rows, weights, dtype=np.float64)

    def _view(self, array: Any, name: str) -> tuple[np.ndarray, Back]:
        if type(array) is np.ndarray:
            return array, _same
        if (torch := sys.modules.get("torch")) is not None and (
            type(array) is torch.Tensor or isinstance(array, torch.Tensor)
        ):
            return _tensor_as_numpy(array, name, torch)
        if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray | np.generic):
            return _dlpack_as_numpy(array, name)
        return np.asarray(array), _same


class Device(Memory):
    """Memory of a torch device, as torch tensors; on ``"cpu"`` it holds NumPy arrays in place."""

    def __init__(self, name: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(numbered(name))

    def read_output(self, array: Any, name: str) -> View:
        """See `Memory`."""
        view, _ = self._view(array, name)
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"{name} is read-only; it must be writeable")
        if not view.is_contiguous():
            raise ValueError(f"{name} is not a C-contiguous array; results cannot be written into it")
        return view

    def dtype(self, view: View) -> np.dtype:
        """See `Memory`."""
        return BFLOAT16 if view.dtype == self._torch.bfloat16 else np.dtype(str(view.dtype).removeprefix("torch."))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> View:
        """See `Memory`."""
        return self._torch.empty(shape, dtype=self._type(dtype), device=self._device)

    def contiguous(self, view: View) -> View:
        """See `Memory`."""
        return view.contiguous()

    def cast(self, view: View, dtype: Any) -> View:
        """See `Memory`."""
        return view.to(self._type(dtype)).contiguous()

    def overlap(self, first: View, second: View) -> bool:
        """See `Memory`."""
        a, b = ((v.data_ptr(), v.data_ptr() + v.numel() * v.element_size()) for v in (first, second))
        return a[0] < b[1] and b[0] < a[1]

    def host(self, view: View) -> np.ndarray:
        """See `Memory`."""
        return view.cpu().numpy()

    def hosts(self, views: Sequence[View]) -> Sequence[np.ndarray]:
        """See `Memory`."""
        return self.host(self._torch.stack(tuple(views)))

    def put(self, array: np.ndarray | None) -> View | None:
        """See `Memory`."""
        return None if array is None else self._torch.from_numpy(array).to(self._device)

    def copy(self, view: View) -> View:
        """See `Memory`."""
        return view.clone()

    def concatenate(self, views: Sequence[View]) -> View:
        """See `Memory`."""
        return self._torch.concatenate(tuple(views))

    def energies(self, rows: View, weights: View) -> View:
        """See `Memory`."""
        return 0.5 * (rows.double() ** 2 @ weights.double())

    def _type(self, dtype: Any) -> Any:
        dtype = np.dtype(dtype)
        return self._torch.bfloat16 if dtype == BFLOAT16 else getattr(self._torch, dtype.name)

    def _view(self, array: Any, name: str) -> tuple[View, Back]:
        if isinstance(array, int | float):
            return self._torch.full((), array, dtype=self._torch.float64, device=self._device), _same
        there = self._torch.device(device(array))
        if there != self._device:
            raise ValueError(f"{name} is on {there}; it must be on {self._device}, as the other arrays are")
        if isinstance(array, self._torch.Tensor):
            return array.detach(), _same
        if there.type == "cpu":
            view, back = HOST.read(array, name)
            return self._torch.from_numpy(view if view.flags.writeable else view.copy()), lambda a: back(a.numpy())
        return self._torch.from_dlpack(array), _library(array).from_dlpack


HOST = Host()


def _rows(view: View, name: str) -> View:
    """Refuse what is too long before anything copies it."""
    if view.ndim and view.shape[-1] >= LIMIT:
        raise ValueError(f"{name} has rows of {view.shape[-1]} entries; there must be fewer than 2^31")
    return view


def _same(array: View) -> Any:
    return array if array.ndim else array[()]  # as NumPy's own reductions


def _shown(array: Any, dtype: np.dtype) -> Any:
    return getattr(array, "dtype", dtype)


def _in_place(array: Any, view: np.ndarray) -> bool:
    pointer = getattr(array, "data_ptr", None)
    return pointer is not None and pointer() == view.__array_interface__["data"][0]


def _tensor_as_numpy(tensor: Any, name: str, torch: Any) -> tuple[np.ndarray, Back]:
    try:  # the plain case first: each question to a tensor costs as much as a kernel does for 100 particles
        return tensor.numpy(), torch.from_numpy
    except (RuntimeError, TypeError):
        pass
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; it must be on the cpu, as the other arrays are")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # its bits travel as integers
        return tensor.view(torch.int16).numpy().view(BFLOAT16), lambda a: torch.from_numpy(a.view(np.int16)).view(
            torch.bfloat16
        )
    try:
        return tensor.numpy(), torch.from_numpy
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{name} is a {tensor.dtype} tensor that NumPy cannot view: {error}") from None


def _dlpack_as_numpy(array: Any, name: str) -> tuple[np.ndarray, Back]:
    try:
        view = np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name} is a {type(array).__name__} that NumPy cannot view: {error}") from None
    library = _library(array)
    return view, library.asarray if hasattr(library, "asarray") else _same


def _library(array: Any) -> Any:
    """The module whose arrays these are: what the array says, or where its type is from."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules.get(type(array).__module__.partition(".")[0])


Op = TypeVar("Op", bound=Callable[..., Any])


def on_its_stream(op: Op) -> Op:
    """Decorate an op that is to queue its work where CuPy does, if it gets arrays of CuPy's.

    Torch's current stream would wait for what CuPy has queued, but CuPy's not for what is written in place.
    """

    @wraps(op)
    def call(*arguments: Any, **options: Any) -> Any:
        kind = getattr(sys.modules.get("cupy"), "ndarray", None)  # none of a module whose import failed half-way
        if kind is None or (array := _first(kind, (*arguments, *options.values()))) is None:
            return op(*arguments, **options)
        import cupy
        import torch

        there = array.device.id
        with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream(there).ptr, there)):
            return op(*arguments, **options)

    return call  # type: ignore[return-value]


def _first(kind: type, arguments: Sequence[Any]) -> Any | None:
    """The first of a kind among arguments, or in lists of them."""
    for argument in arguments:
        found = _first(kind, argument) if isinstance(argument, list | tuple) else argument
        if isinstance(found, kind):
            return found
    return None


def on_its_device(op: Op) -> Op:
    """Decorate a function of tensors that launches kernels where they are, which is not always the current device."""
    import torch

    @wraps(op)
    def call(*arguments: Any, **options: Any) -> Any:
        tensor = next((a for a in arguments if isinstance(a, torch.Tensor)), None)
        if tensor is None or not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
            return op(*arguments, **options)
        with torch.cuda.device(tensor.device):
            return op(*arguments, **options)

    return call  # type: ignore[return-value]


def _one_thread() -> None:
    """Torch's threads do not survive a fork, as the engine's do not: see csrc/cpu/threads.h."""
    torch = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):  # which a module whose import failed half-way has not
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)
