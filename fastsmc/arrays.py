"""Arrays of any library as NumPy views, and results back as the same kind.

NumPy arrays and torch tensors in host memory are read in place, others through DLPack or the buffer protocol;
what is not C-contiguous and aligned is copied. Torch is never imported here: a torch tensor can only come
from a program that has done so already.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastsmc import backends

Back = Callable[[np.ndarray], Any]

FLOAT64 = np.dtype(np.float64)
FLOATS = (np.dtype(np.float32), FLOAT64)

LIMIT = 2**31
"""Resampling takes fewer particles and samples than this."""


def read(array: Any, name: str) -> tuple[np.ndarray, Back]:
    """View an array as a NumPy array, in place where its memory allows.

    Parameters
    ----------
    array : array_like
        NumPy array, torch tensor, anything with ``__dlpack__`` or a buffer, or nested sequences of numbers.
    name : str
        What error messages call it.

    Returns
    -------
    view : numpy.ndarray
        C-contiguous and aligned; possibly read-only.
    back : callable
        Makes an array of the given kind from a NumPy array.
    """
    view, back = _view(array, name)
    return _contiguous(view), back


def read_floats(array: Any, name: str) -> tuple[np.ndarray, Back]:
    """As ``read``, for rows of float32 or float64 only."""
    view, back = _view(array, name)
    if (dtype := view.dtype) is not FLOAT64 and dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {_dtype(array, view)}; it must be float32 or float64")
    flags = view.flags
    if view.size < LIMIT and flags.c_contiguous and flags.aligned:  # as a rule: small calls are counted in calls
        return view, back
    return _contiguous(_rows(view, name)), back


def read_integers(array: Any, name: str) -> tuple[np.ndarray, Back]:
    """As ``read``, for rows of integers of any width, as int64."""
    view, back = _view(array, name)
    if view.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {_dtype(array, view)}; it must be an integer type")
    return _contiguous(_rows(view, name).astype(np.int64, copy=False)), back


def read_output(array: Any, name: str) -> np.ndarray:
    """View an array that is to be written: its own memory, since what is written to a copy is lost."""
    view, _ = read(array, name)
    if not view.flags.writeable:
        raise ValueError(f"{name} is read-only; it must be writeable")
    if not (isinstance(array, np.ndarray) and view is array) and not _in_place(array, view):
        raise ValueError(f"{name} is not a C-contiguous array; results cannot be written into it")
    return view


def _view(array: Any, name: str) -> tuple[np.ndarray, Back]:
    if type(array) is np.ndarray:
        return array, _same
    if type(array) is float:
        return np.array(array), _same
    if (torch := sys.modules.get("torch")) is not None and (
        type(array) is torch.Tensor or isinstance(array, torch.Tensor)
    ):
        return _read_tensor(array, name, torch)
    if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray | np.generic):
        return _read_dlpack(array, name)
    return np.asarray(array), _same


def _contiguous(view: np.ndarray) -> np.ndarray:
    flags = view.flags
    return view if flags.c_contiguous and flags.aligned else np.array(view, order="C")


def _rows(view: np.ndarray, name: str) -> np.ndarray:
    """Refuse what is too long before anything copies it."""
    if view.ndim and view.shape[-1] >= LIMIT:
        raise ValueError(f"{name} has rows of {view.shape[-1]} entries; there must be fewer than 2^31")
    return view


def _same(array: np.ndarray) -> Any:
    return array if array.ndim else array[()]  # as NumPy's own reductions


def _dtype(array: Any, view: np.ndarray) -> Any:
    return getattr(array, "dtype", view.dtype)


def _in_place(array: Any, view: np.ndarray) -> bool:
    pointer = getattr(array, "data_ptr", None)
    return pointer is not None and pointer() == view.__array_interface__["data"][0]


def _read_tensor(tensor: Any, name: str, torch: Any) -> tuple[np.ndarray, Back]:
    try:  # the plain case first: each question to a tensor costs as much as a kernel does for 100 particles
        return tensor.numpy(), torch.from_numpy
    except (RuntimeError, TypeError):
        pass
    if tensor.device.type != "cpu":
        _refuse_device(name, tensor.device, tensor.device.type)
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type: its bits travel as integers
        return tensor.view(torch.int16).numpy().view(BFLOAT16), lambda a: torch.from_numpy(a.view(np.int16)).view(
            torch.bfloat16
        )
    try:
        return tensor.numpy(), torch.from_numpy
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{name} is a {tensor.dtype} tensor that NumPy cannot view: {error}") from None


# Two opaque bytes: moved by gather_particles, refused as numbers.
BFLOAT16 = np.dtype([("bfloat16", np.int16)])


def _read_dlpack(array: Any, name: str) -> tuple[np.ndarray, Back]:
    try:
        view = np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError) as error:
        device = getattr(array, "device", "an unknown device")
        if "cpu" not in str(device).lower():
            _refuse_device(name, device, "cuda")
        raise TypeError(f"{name} is a {type(array).__name__} that NumPy cannot view: {error}") from None
    namespace = getattr(array, "__array_namespace__", None)
    return view, namespace().asarray if namespace else _same


def _refuse_device(name: str, device: Any, device_type: str) -> None:
    raise NotImplementedError(
        f"{name} is on {device}, which the cpu engine cannot read; {backends.reasons(device_type)}; move it to the cpu"
    )
