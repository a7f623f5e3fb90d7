"""The same data from every source give the same run; what does not fit in memory is read in blocks, and never whole."""

import mmap

import numpy as np
import pytest
import torch
from processes import printed
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fastsmc as fs
from fastsmc import report, sources
from fastsmc.batches import Data
from fastsmc.sources import Rows

NETWORK = fs.MLP([6, 5, 2])


class Items(Dataset):
    """Pairs of a small image and a label."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return torch.from_numpy(self.x[i].reshape(1, 2, 3)), int(self.y[i])


def bytes_of(num_data=300):
    rng = np.random.default_rng(4)
    x = rng.integers(0, 5, (num_data, 6)).astype(np.uint8)
    return x, (x[:, 0] > x[:, 1]).astype(np.int64)


def mapped(x, folder):
    x.tofile(folder / "x.bin")
    return np.memmap(folder / "x.bin", x.dtype, "r", shape=x.shape)


def frame(x, y):
    pandas = pytest.importorskip("pandas")
    columns = {f"pixel {k}": pandas.Series(column, dtype="UInt8" if k else "float32") for k, column in enumerate(x.T)}
    return pandas.DataFrame(columns), pandas.Series(y, dtype="Int64")


SOURCES = {
    "lists": lambda x, y, folder: (x.tolist(), y.tolist()),
    "tensors": lambda x, y, folder: (torch.from_numpy(x), torch.from_numpy(y)),
    "images": lambda x, y, folder: (x.reshape(-1, 1, 2, 3), y),
    "pandas": lambda x, y, folder: frame(x, y),
    "TensorDataset": lambda x, y, folder: (TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), None),
    "Dataset": lambda x, y, folder: (Items(x, y), None),
    "DataLoader": lambda x, y, folder: (DataLoader(Items(x, y), batch_size=7, shuffle=True), None),
    "memory map": lambda x, y, folder: (mapped(x, folder), y),
    "view of a map": lambda x, y, folder: (np.asarray(mapped(x, folder)).reshape(-1, 2, 3), y),
    "map of float64": lambda x, y, folder: (mapped(x.astype(np.float64), folder), y),
}
READ_ON_DEMAND = ("Dataset", "DataLoader", "memory map", "view of a map", "map of float64")


def sghmc(**options):
    annealing = fs.SmoothDataAnnealing(start=20)
    return fs.SMC(fs.Posterior(NETWORK), 6, annealing, fs.SGHMC(batch_size=32), 6, seed=3, **options)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_bits(source, tmp_path):
    x, y = bytes_of()
    expected = sghmc().run(x, y)
    got = sghmc().run(*SOURCES[source](x, y, tmp_path))
    np.testing.assert_array_equal(np.asarray(got.particles), expected.particles)
    np.testing.assert_array_equal(np.asarray(got.log_weights), expected.log_weights)
    assert got.log_evidence == expected.log_evidence
    assert got.history.data_passes[-1] == expected.history.data_passes[-1]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_predicted(source, tmp_path, monkeypatch):
    """In blocks of 50 rows."""
    x, y = bytes_of()
    result = sghmc().run(x, y)
    expected = result.predict_proba(x), result.predict(x), result.evaluate(x, y)
    given, labels = SOURCES[source](x, y, tmp_path)
    monkeypatch.setattr(sources, "BLOCK", 50 * 4 * 6)
    for got, truth in zip((result.predict_proba(given), result.predict(given)), expected[:2], strict=True):
        assert isinstance(got, torch.Tensor) == (source in ("tensors", "TensorDataset"))
        np.testing.assert_allclose(got, truth, rtol=1e-12)
    assert result.evaluate(given, y if labels is None else labels) == pytest.approx(expected[2])


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_reported(source, tmp_path, monkeypatch):
    """The same page, but for images where rows are images."""
    monkeypatch.setattr(report, "_png", lambda image: None)
    monkeypatch.setattr(report, "_svg", lambda picture, name: "")
    x, y = bytes_of()
    result = sghmc().run(x, y)
    given, labels = SOURCES[source](x, y, tmp_path)
    assert report.render(result, given, y if labels is None else labels) == report.render(result, x, y)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_has_pointwise_densities(source, tmp_path):
    x, y = bytes_of()
    result = sghmc().run(x, y)
    given, labels = SOURCES[source](x, y, tmp_path)
    labels = y if labels is None else labels
    np.testing.assert_array_equal(result.pointwise(given, labels), result.pointwise(x, y))
    with pytest.raises(ValueError, match=r"y has shape \(1,\); it must have 300 rows, as x has"):
        result.pointwise(given, labels[:1])


@pytest.mark.parametrize("source", SOURCES)
def test_maps_and_data_sets_alone_are_read_on_demand(source, tmp_path):
    x, y = sources.read(*SOURCES[source](*bytes_of(), tmp_path))
    data = Data(x, y, fs.Posterior(NETWORK), 0, stratify=True)
    assert data.rows(10, 20).streams == (source in READ_ON_DEMAND)


@pytest.mark.parametrize(
    "move",
    [
        fs.HMC(3, step_size=0.02),
        fs.KineticLangevin(num_steps=2, step_size=0.05, precondition=True),
        fs.RandomWalk(step_size=0.01),
        fs.SGHMC(batch_size=32, weighted=True, step_size=0.01),
    ],
    ids=lambda move: type(move).__name__,
)
@pytest.mark.parametrize("annealing", [fs.AdaptiveDataAnnealing(start=40, settle=2), fs.FullBatch()])
def test_sums_over_blocks_are_those_over_batches(move, annealing, tmp_path, monkeypatch):
    """Blocks of 50 rows: the same run to rounding, with sample weights and bridges, whatever the move computes."""
    x, y = bytes_of()
    weights = np.linspace(0.5, 1.5, len(x))
    smc = fs.SMC(fs.Posterior(NETWORK), 8, annealing, move, 15, seed=2)
    expected = smc.run(x, y, weights=weights)
    monkeypatch.setattr(sources, "BLOCK", 50 * 4 * 6)
    got = smc.run(mapped(x, tmp_path), y, weights=weights)
    np.testing.assert_allclose(got.particles, expected.particles, atol=2e-3)
    np.testing.assert_allclose(got.history.log_evidence, expected.history.log_evidence, rtol=1e-4)
    np.testing.assert_allclose(got.history.data_passes, expected.history.data_passes)


def test_blocks_are_neighbours_in_the_source_and_make_up_all(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 10 * 4 * 3)
    table, seen = np.arange(300.0).reshape(100, 3), []

    def fetch(index):
        assert np.all(np.diff(index) >= 0)
        seen.append(index)
        return table[index]

    order = np.random.default_rng(0).permutation(100)[:95]
    rows = Rows(fetch, order, 3)
    blocks = list(rows.blocks())
    assert [len(block) for block in blocks] == [10] * 9 + [5]
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.arange(95))
    for block in blocks:
        np.testing.assert_array_equal(rows[block].read(), table[order[block]])
    np.testing.assert_array_equal(np.concatenate(seen), np.sort(order))
    seen.clear()
    whole = rows.read()
    assert whole.dtype == np.float32
    assert whole.flags.c_contiguous
    np.testing.assert_array_equal(whole, table[order])
    assert max(map(len, seen)) == 10
    np.testing.assert_array_equal(np.asarray(rows[20:30][::-1]), table[order[20:30]][::-1])
    np.testing.assert_array_equal(rows.map(lambda block: -block)[[4, 2, 2]].read(), -table[order[[4, 2, 2]]])


def test_maps_are_known_through_views_and_buffers(tmp_path):
    x, _ = bytes_of()
    plain = mapped(x, tmp_path)
    with (tmp_path / "x.bin").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        for array in (plain, plain[3:, ::2], np.asarray(plain).T, np.frombuffer(buffer, np.uint8)):
            assert sources._map(array) is not None
        del array
    np.save(tmp_path / "x.npy", x)
    assert isinstance(sources._map(np.load(tmp_path / "x.npy", mmap_mode="r")), np.memmap)
    assert {sources._map(array) for array in (x, x[2:], plain.copy(), np.float32(1.0))} == {None}


STREAMED = """
import resource, sys
import numpy as np
import fastsmc as fs

folder = sys.argv[1]
x, y = np.memmap(folder + "/x.bin", np.uint8, "r").reshape(13200, -1), np.load(folder + "/y.npy")
used = 4096 * int(open("/proc/self/statm").read().split()[0])  # with the map, whose address space counts
room = 200 * 2**20
assert x.nbytes > room
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
posterior = fs.Posterior(fs.MLP([x.shape[1], 2, 2]), fs.Normal(0.3))
smc = fs.SMC(posterior, 4, fs.SmoothDataAnnealing(start=200), fs.SGHMC(coverage=0.02), 6, seed=1)
result = smc.run(x, y)
assert result.target.is_posterior(len(x)), result.target
outputs = np.einsum("p,pbk->bk", result.weights, posterior.outputs(result.particles, x[:400]))
print(np.mean(outputs.argmax(axis=1) == y[:400]))
try:
    smc.run(np.array(x), y)
except MemoryError:
    print("no room")
"""


PLAIN = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
"""No memory is set aside for threads, and what is freed goes back to the system."""


@pytest.mark.large
def test_data_larger_than_memory_are_sampled(tmp_path):
    """260 MiB of images of 20,480 bytes, of which all but 16 are black; which of them are not tells the class."""
    rng = np.random.default_rng(0)
    x, y = np.zeros((13200, 16), np.uint8), rng.integers(0, 2, 13200)
    x[np.arange(len(x))[:, None], 8 * y[:, None] + np.arange(8)] = rng.integers(0, 4, (len(x), 8))
    with (tmp_path / "x.bin").open("wb") as file:  # of which the disk has a fifth, if at all
        for number, row in enumerate(x):
            file.seek(number * 20480)
            file.write(row.tobytes())
        file.truncate(len(x) * 20480)
    np.save(tmp_path / "y.npy", y)
    try:
        accuracy, refused = printed(STREAMED, str(tmp_path), **PLAIN).splitlines()
    finally:
        (tmp_path / "x.bin").unlink()
    assert float(accuracy) > 0.95
    assert refused == "no room"


def unlike_numbers(x, y, folder):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"size": [1.0, 2.0], "colour": ["red", "blue"]}), np.zeros(2, int)


def missing(x, y, folder):
    table, labels = frame(x, y)
    table.iloc[7, 2] = None
    return table, labels


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


def not_finite(x, y, folder):
    x = x.astype(np.float64)
    x[[7, 9], [1, 2]] = np.nan, 1e300
    return x, y


HOSTILE = {
    "a column of words": (
        unlike_numbers,
        TypeError,
        "x has a column 'colour' of dtype .*; every column must",
    ),
    "a missing number": (missing, ValueError, r"x\[7\] holds NaN or infinity"),
    "NaN in memory": (not_finite, ValueError, r"x\[[79]\] holds NaN or infinity"),
    "NaN in a map": (
        lambda x, y, folder: (mapped(not_finite(x, y, folder)[0], folder), y),
        ValueError,
        r"x\[[79]\] holds NaN or infinity",
    ),
    "words": (lambda x, y, folder: (x.astype(str), y), TypeError, "x has dtype <U.*; it must hold real numbers"),
    "complex": (lambda x, y, folder: (x + 1j, y), TypeError, "x has dtype complex128; it must hold real numbers"),
    "nothing": (
        lambda x, y, folder: (x[:0], y[:0]),
        ValueError,
        r"x has shape \(0, 6\); it must hold at",
    ),
    "no targets": (lambda x, y, folder: (x, None), TypeError, "y is None; it must be given for arrays"),
    "targets twice": (lambda x, y, folder: (Items(x, y), y), TypeError, "y is given beside a torch data set"),
    "three tensors": (
        lambda x, y, folder: (TensorDataset(*map(torch.from_numpy, (x, y, y))), None),
        ValueError,
        r"its items must be pairs \(x, y\)",
    ),
    "an empty data set": (lambda x, y, folder: (Items(x[:0], y[:0]), None), ValueError, "of 0 items"),
    "no length": (lambda x, y, folder: (Endless(), None), TypeError, "x is of Endless; it must be a map-style Dataset"),
    "fewer targets": (lambda x, y, folder: (mapped(x, folder), y[:9]), ValueError, "x has 300 rows, but y has 9"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_data_is_refused_with_a_sentence(case, tmp_path):
    make, error, sentence = HOSTILE[case]
    with pytest.raises(error, match=sentence):
        sghmc().run(*make(*bytes_of(), tmp_path))
