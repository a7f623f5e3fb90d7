"""What data come in: arrays, tables, torch's data sets, and memory maps, which need not fit in memory."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastsmc import arrays
from fastsmc.arrays import HOST, REALS, Memory, View

BLOCK = 2**25
"""Bytes of rows that are in memory at a time."""


@dataclass(frozen=True)
class Rows:
    """Rows of features, float32 [N, inputs], that are read when they are computed with.

    Parts of it, ``rows[10:20]`` or ``rows[[3, 1, 2]]``, are `Rows` that have not been read either.

    Parameters
    ----------
    fetch
        Reads rows by their places in the source, int64 [n] that never decrease, as real numbers [n, ...]. Their rows
        are flattened, and the numbers, whatever their type, taken as they are: bytes become 0 to 255.
    index
        Places of the rows in the source, int64 [N].
    inputs
        Numbers of a row.
    memory
        Where rows that are read go.
    """

    fetch: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray
    inputs: int
    memory: Memory = HOST
    source: Mapping[str, Any] | None = None
    """Arguments of `numpy.memmap` that map all the rows again; None where they are not a file's."""

    @classmethod
    def of(cls, x: Any) -> Rows:
        """Those of an array, in its memory or in its file; themselves, if they are rows."""
        if isinstance(x, Rows):
            return x
        array = arrays.on_host(x, "x")
        if array.dtype.kind not in REALS:
            raise TypeError(f"x has dtype {array.dtype}; it must hold real numbers")
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"x has shape {array.shape}; it must hold at least one row of numbers")
        return cls(array.__getitem__, np.arange(len(array)), array[:1].size, source=_file(x))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice | View) -> Rows:
        return replace(self, index=self.index[part if isinstance(part, slice) else self.memory.host(part)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, in memory."""
        return self.memory.host(self.read()).astype(dtype or np.float32, copy=False)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Rows:
        """Rows that are what a function makes of blocks of these, float32 [n, inputs]."""
        return Rows(lambda index: function(replace(self, index=index, memory=HOST).read()), self.index, self.inputs)

    def read(self) -> View:
        """C-contiguous float32 [N, inputs]; the source is read from its beginning to its end."""
        rows = np.empty((len(self), self.inputs), np.float32)
        for chunk in self._chunks():
            found = self.fetch(self.index[chunk]).reshape(len(chunk), self.inputs)
            with np.errstate(over="ignore"):
                rows[chunk] = found
            if found.dtype.kind == "f" and not (good := np.isfinite(rows[chunk]).all(axis=1)).all():
                row = self.index[chunk[np.argmin(good)]]
                raise ValueError(f"x[{row}] holds NaN or infinity; every feature must be a finite number")
        return self.memory.put(rows)

    def blocks(self) -> Iterator[slice | View]:
        """Parts of at most `BLOCK` bytes of float32 that make up all; each is of neighbours in the source."""
        if len(self) <= self.block_size:
            yield slice(None)
            return
        for chunk in self._chunks():
            yield self.memory.put(np.sort(chunk))

    @property
    def block_size(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK // (4 * self.inputs))

    def _chunks(self) -> Iterator[np.ndarray]:
        """Numbers of rows in the order in which the source has them, as many as a block has at a time."""
        order = np.argsort(self.index, kind="stable")
        for begin in range(0, len(self), self.block_size):
            yield order[begin : begin + self.block_size]


def read(x: Any, y: Any = None) -> tuple[Any, Any]:
    """Features, an array or `Rows`, and targets, an array, of whatever `Sampler.run` takes."""
    pairs = _data_set(x)
    if (y is None) == (pairs is None):
        said = "None" if y is None else "given beside a torch data set, whose items hold the targets"
        raise TypeError(f"y is {said}; it must be given for arrays, and None for a torch Dataset of pairs (x, y)")
    return features(x), table(y, "y") if pairs is None else _targets(pairs)


def features(x: Any) -> Any:
    """Features [N, ...]: an array, or `Rows` of what is not in memory."""
    if isinstance(x, Rows):
        return x
    if (items := _data_set(x)) is not None:
        return items.tensors[0] if hasattr(items, "tensors") else _item_rows(items)
    x = table(x, "x")
    return Rows.of(x) if _map(x) is not None else x


def whole(x: Any) -> np.ndarray:
    """Features in memory, on the host: [N, ...] as they were given, or the rows of a data set of items."""
    return arrays.on_host(table(x, "x") if _data_set(x) is None else features(x), "x")


def like(x: Any) -> Any:
    """An array of the kind that results for features are to be: NumPy's for what is not in memory."""
    return np.empty(0) if isinstance(x, Rows) else x


def table(values: Any, name: str) -> Any:
    """A pandas DataFrame as an array [N, columns] and a Series as one [N], missing numbers NaN; others as they are."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(values, pandas.DataFrame | pandas.Series):
        return values
    frame = values if values.ndim == 2 else values.to_frame()
    for column, dtype in frame.dtypes.items():
        if not pandas.api.types.is_numeric_dtype(dtype):
            raise TypeError(f"{name} has a column {column!r} of dtype {dtype}; every column must be numeric")
    columns = [_column(frame.iloc[:, k]) for k in range(frame.shape[1])]
    return np.column_stack(columns) if values.ndim == 2 else columns[0]


def _column(series: Any) -> np.ndarray:
    if series.isna().any():
        return series.to_numpy(np.float64, na_value=np.nan)
    return series.to_numpy(getattr(series.dtype, "numpy_dtype", series.dtype))


def _map(array: Any) -> Any:
    """The memory map that an array is a view of, as NumPy's array if it is one; None if it is of none."""
    owner, found = array, None
    while isinstance(owner, np.ndarray | memoryview):
        found = owner if isinstance(owner, np.memmap) else found
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return (owner if found is None else found) if isinstance(owner, mmap.mmap) else None


def _file(array: Any) -> dict[str, Any] | None:
    """Where the numbers of an array lie in a file, as `numpy.memmap` takes it."""
    owner = _map(array)
    if not (isinstance(owner, np.memmap) and owner.filename and array.flags.c_contiguous):
        return None
    offset = owner.offset + array.ctypes.data - owner.ctypes.data
    return {"filename": str(owner.filename), "dtype": array.dtype.str, "shape": array.shape, "offset": offset}


def mapped(filename: str, dtype: str, shape: Sequence[int], offset: int) -> np.memmap:
    """What `_file` has said of an array, mapped again."""
    if np.dtype(dtype).kind not in REALS:
        raise TypeError(f"dtype is {dtype!r}; a map must hold real numbers")
    return np.memmap(filename, dtype, "r", offset, tuple(shape))


def _data_set(x: Any) -> Any:
    """The torch data set of items that x is, or that it loads; None if it is neither."""
    torch = sys.modules.get("torch.utils.data")
    if torch is None or not isinstance(x, torch.Dataset | torch.DataLoader):
        return None
    items = x.dataset if isinstance(x, torch.DataLoader) else x
    if isinstance(items, torch.IterableDataset) or not hasattr(items, "__len__"):
        raise TypeError(f"x is of {type(items).__name__}; it must be a map-style Dataset, with a length")
    if len(getattr(items, "tensors", (0, 0))) != 2 or len(items) == 0 or len(items[0]) != 2:
        raise ValueError(f"x is a {type(items).__name__} of {len(items)} items; its items must be pairs (x, y)")
    return items


def _targets(pairs: Any) -> Any:
    if hasattr(pairs, "tensors"):
        return pairs.tensors[1]
    return np.stack([arrays.on_host(pairs[i][1], "y") for i in range(len(pairs))])


def _item_rows(items: Any) -> Rows:
    def fetch(index: np.ndarray) -> np.ndarray:
        return np.stack([arrays.on_host(items[int(i)][0], "x") for i in index])

    return replace(Rows.of(fetch(np.arange(1))), fetch=fetch, index=np.arange(len(items)))
