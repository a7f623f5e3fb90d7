"""Readers of data sets: MNIST's IDX files, .npz, CSV, and scikit-learn's digits; and their standardisation."""

from __future__ import annotations

import csv
import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastsmc import arrays
from fastsmc.sources import Rows, features

DEFLATE_LIMIT = 1032  # no deflate stream expands further, so a size beyond this multiple is a lie
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
TEST_FRACTION = 0.2
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Dataset(NamedTuple):
    """Float32 features [N, inputs] with int64 labels [N], or float32 targets [N] or [N, K]."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str
    classes: int
    """Number of classes; 0 for a regression."""
    shape: tuple[int, ...] = ()
    """Of a row's features as they were read, such as those of an image."""

    def standardised(self) -> tuple[Dataset, np.ndarray, np.ndarray]:
        """Every feature with mean 0 and deviation 1 over the training data; also the means and deviations."""
        standardiser = Standardiser().fit(self.x_train)
        x_train, x_test = map(standardiser.transform, (self.x_train, self.x_test))
        return self._replace(x_train=x_train, x_test=x_test), standardiser.mean, standardiser.scale

    def with_standardised_targets(self) -> tuple[Dataset, np.ndarray, np.ndarray]:
        """The same of the targets of a regression."""
        columns = [y.reshape(len(y), -1) for y in (self.y_train, self.y_test)]
        standardiser = Standardiser().fit(columns[0])
        y_train, y_test = (
            standardiser.transform(c).reshape(y.shape)
            for c, y in zip(columns, (self.y_train, self.y_test), strict=True)
        )
        return self._replace(y_train=y_train, y_test=y_test), standardiser.mean, standardiser.scale


class Standardiser:
    """Gives every feature mean 0 and standard deviation 1 over the rows that it was fitted to.

    >>> standardiser = fs.Standardiser().fit(x_train)
    >>> result = smc.run(standardiser.transform(x_train), y_train)
    >>> result.evaluate(standardiser.transform(x_test), y_test)

    Attributes
    ----------
    mean, scale
        float64 [inputs]; the scale of a feature that is constant is 1.
    """

    mean: np.ndarray
    scale: np.ndarray

    def fit(self, x: Any) -> Standardiser:
        """Learn means and scales of features [N, ...], of any source that `SMC.run` takes.

        What is not in memory is read once, a block at a time; blocks are merged after Chan, Golub and LeVeque (1983).
        """
        rows, count = Rows.of(features(x)), 0
        mean, squares = np.zeros((2, rows.inputs))
        low, high = np.full((2, rows.inputs), [[np.inf], [-np.inf]])
        for part in rows.blocks():
            block = rows[part].read().astype(np.float64)
            center, total = block.mean(axis=0), count + len(block)
            squares += block.var(axis=0) * len(block) + (center - mean) ** 2 * (count * len(block) / total)
            mean += (center - mean) * (len(block) / total)
            low, high, count = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0)), total
        self.mean, self.scale = mean, np.where(low == high, 1.0, np.sqrt(squares / count))
        return self

    def transform(self, x: Any) -> Any:
        """Standardised features, float32, of the shape and kind of x; of a source that is not in memory when read."""
        if not hasattr(self, "mean"):
            raise ValueError("the standardiser has not been fitted; call fit(x) before transform(x)")
        x = features(x)
        rows = Rows.of(x)
        if rows.inputs != len(self.mean):
            raise ValueError(f"x has {rows.inputs} features; it must have {len(self.mean)}, as what was fitted to")
        standardised = rows.map(lambda block: ((block - self.mean) / self.scale).astype(np.float32))
        return standardised if rows is x else arrays.kind_of(x, "x")(standardised.read().reshape(np.shape(x)))


def load(
    source: str | Path,
    *,
    target: str | None = None,
    regression: bool = False,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> Dataset:
    """Read what `source` is: a folder of IDX files, a .npz or .csv file, or the word ``digits``."""
    path = Path(source)
    if path.suffix == ".csv" and not path.is_dir():
        return load_csv(path, target=target, regression=regression, test_fraction=test_fraction, seed=seed)
    if target is not None:
        raise ValueError(f"target is {target!r}; it must be left out unless the data are a .csv file")
    if path.suffix == ".npz" and not path.is_dir():
        return load_npz(path, regression=regression, test_fraction=test_fraction, seed=seed)
    if regression and (path.is_dir() or str(source) == "digits"):
        raise ValueError(f"{source} holds labels of images; the likelihood must be categorical")
    if path.is_dir():
        return load_mnist(path)
    if str(source) == "digits":
        return load_digits()
    raise ValueError(f"data {str(source)!r} is not a folder of IDX files, a .npz or .csv file, or 'digits'")


def load_digits() -> Dataset:
    """Read scikit-learn's 1,797 digits of 8 x 8 pixels, scaled to [0, 1]; 1,437 are for training."""
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the digits need scikit-learn: pip install 'fastsmc[sklearn]'") from None
    x, y = datasets.load_digits(return_X_y=True)
    return _split("digits", x.reshape(-1, 8, 8) / 16.0, y, regression=False, test_fraction=TEST_FRACTION, seed=0)


def load_mnist(folder: str | Path) -> Dataset:
    """Read MNIST, or anything in its form, from its four IDX files (.gz or not); pixels scaled to [0, 1]."""
    x_train, y_train, x_test, y_test = (read_idx(_find(Path(folder), stem)) for stem in MNIST_FILES)
    return _dataset(str(folder), x_train, y_train, x_test, y_test, regression=False)


def load_npz(
    path: str | Path,
    *,
    regression: bool = False,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> Dataset:
    """Read x_train, y_train, x_test, y_test, or x and y, which are then split; bytes count as pixels."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            for names in (("x_train", "y_train", "x_test", "y_test"), ("x", "y")):
                if members.issuperset(names):
                    found = [_npz_member(path, archive, name) for name in names]
                    break
            else:
                raise ValueError(
                    f"{path} holds {sorted(members)}, but must hold x, y or x_train, y_train, x_test, y_test"
                )
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if len(found) == 4:
        return _dataset(str(path), *found, regression=regression)
    return _split(str(path), *found, regression=regression, test_fraction=test_fraction, seed=seed)


def load_csv(
    path: str | Path,
    *,
    target: str | None = None,
    regression: bool = False,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> Dataset:
    """Read numbers separated by commas, semicolons or tabs.

    A first line that has more in it than numbers is a header, and so is one that numbers three columns or more from
    zero. The target is the column it names, or the last one.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        names = [name.strip() for name in next(csv.reader([first.strip("\r\n")], delimiter=delimiter), [])]
        columns = names[1:] if names[:1] == [""] else names  # of a data frame with its index
        numbered = len(columns) > 2 and columns == [str(k) for k in range(len(columns))]
        header = numbered or not all(_is_number(name) for name in names if name)
        if target is not None and not (header and target in names):
            known = f"its columns are {', '.join(names)}" if header else "it has no header"
            raise ValueError(f"target {target!r} is not a column of {path}: {known}")
        file.seek(0)
        try:
            table = np.loadtxt(file, delimiter=delimiter, skiprows=int(header), quotechar='"', ndmin=2)
        except ValueError as error:
            raise ValueError(f"{path} is not a table of numbers: {error}") from None
    if table.shape[1] < 2:
        raise ValueError(f"{path} has {table.shape[1]} column(s), but needs features and a target")
    column = table.shape[1] - 1 if target is None else names.index(target)
    x, y = np.delete(table, column, axis=1), table[:, column]
    return _split(str(path), x, y, regression=regression, test_fraction=test_fraction, seed=seed)


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file of bytes, compressed or not; its header is checked before it is believed."""
    with Path(path).open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        limit = raw.seek(0, 2) * (DEFLATE_LIMIT if packed else 1)
        raw.seek(0)
        try:
            return _read_idx(path, gzip.GzipFile(fileobj=raw) if packed else raw, limit)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def _read_idx(path: str | Path, file: BinaryIO, limit: int) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
        raise ValueError(f"{path} is not an IDX file of bytes: it starts with {magic.hex()}, not 000008")
    dims = file.read(4 * magic[3])
    if len(dims) < 4 * magic[3]:
        raise ValueError(f"{path} ends inside its header")
    shape = struct.unpack(f">{magic[3]}I", dims)
    size = math.prod(shape)
    body = file.read(size + 1) if size <= limit else b""
    if len(body) != size:
        found = "more" if len(body) > size else "fewer"
        raise ValueError(f"{path} announces {size:,} bytes but holds {found}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _npz_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = NPY_HEADERS[version](file)
        except Exception as error:  # of whatever reads the literal that the header is
            raise ValueError(f"{name} in {path} has no readable header: {error}") from None
        if dtype.kind not in "biuf":
            raise ValueError(f"{name} in {path} has dtype {dtype}, but must hold numbers")
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - file.tell() or info.file_size > DEFLATE_LIMIT * info.compress_size:
            raise ValueError(f"{name} in {path} announces {size:,} bytes, which its length does not bear out")
        flat = np.frombuffer(file.read(), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _find(folder: Path, stem: str) -> Path:
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{folder} has no {stem} or {stem}.gz; MNIST's four IDX files belong there")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(name: str, x: np.ndarray, y: np.ndarray, *, regression: bool, test_fraction: float, seed: int) -> Dataset:
    """Set test rows aside at random, in a classification the same share of every class."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, but must lie between 0 and 1")
    if len(x) != len(y):
        raise ValueError(f"{name} has {len(x):,} rows of features but {len(y):,} targets")
    order = np.random.default_rng(seed).permutation(len(y))
    if not regression and y.ndim == 1:
        order = order[np.argsort(y[order], kind="stable")]
    share = np.ceil(np.arange(len(y) + 1) * test_fraction)
    held_out = np.zeros(len(y), bool)
    held_out[order] = np.diff(share) > 0
    return _dataset(name, x[~held_out], y[~held_out], x[held_out], y[held_out], regression=regression)


def _dataset(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    regression: bool,
) -> Dataset:
    for part, x, y in (("training", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise ValueError(f"{name} has {len(x):,} rows of features but {len(y):,} targets for {part}")
        if x.size == 0:
            raise ValueError(f"{name} holds no {part} data")
    shape = x_train.shape[1:]
    x_train, x_test = _features(name, x_train), _features(name, x_test)
    inputs = x_train.shape[1]
    if inputs != x_test.shape[1]:
        raise ValueError(f"{name} has {inputs} features for training but {x_test.shape[1]} for test")
    if regression:
        return Dataset(x_train, _targets(name, y_train), x_test, _targets(name, y_test), name, 0, shape)
    y_train, y_test = _labels(name, y_train), _labels(name, y_test)
    top = int(max(y_train.max(), y_test.max()))
    rows = len(y_train) + len(y_test)
    if top >= rows:
        raise ValueError(f"{name} has a label {top} in {rows:,} rows, but classes are numbered 0, 1, 2, ...")
    return Dataset(x_train, y_train, x_test, y_test, name, top + 1, shape)


def _features(name: str, x: np.ndarray) -> np.ndarray:
    scale = 255 if x.dtype == np.uint8 else 1
    with np.errstate(over="ignore"):
        x = x.reshape(len(x), -1).astype(np.float32) / np.float32(scale)
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(f"{name} has features that are not finite in {bad.sum():,} of {len(x):,} rows")
    return x


def _labels(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim != 1:
        raise ValueError(f"{name} has labels of shape {y.shape}, but they must be one integer per row")
    wrong = y[~(np.isfinite(y) & (y >= 0) & (y == np.floor(y)))]
    if len(wrong):
        raise ValueError(f"{name} has a label {wrong[0]}, but labels must be the integers 0, 1, 2, ...")
    return y.astype(np.int64)


def _targets(name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim not in (1, 2):
        raise ValueError(f"{name} has targets of shape {y.shape}, but they must be [N] or [N, K]")
    y = y.astype(np.float32)
    if not np.isfinite(y).all():
        raise ValueError(f"{name} has targets that are not finite")
    return y
