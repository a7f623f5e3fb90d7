import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsmc as fs
from fastsmc import data, sources


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mnist(tmp_path, rng):
    """A folder in MNIST's form, half of it compressed: 12 training and 5 test images of 4 x 3 pixels."""
    arrays = {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 4, 3), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for i, (stem, array) in enumerate(arrays.items()):
        packed = gzip.compress(idx_bytes(array)) if i % 2 else idx_bytes(array)
        (tmp_path / (stem + ".gz" * (i % 2))).write_bytes(packed)
    return tmp_path, arrays


def test_mnist_is_read_as_written(mnist):
    folder, arrays = mnist
    got = data.load(folder)
    images = arrays["train-images-idx3-ubyte"].reshape(12, 12)
    assert got.x_train.dtype == np.float32
    assert got.y_train.dtype == np.int64
    np.testing.assert_array_equal(got.x_train, images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(got.y_train, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(got.y_test, arrays["t10k-labels-idx1-ubyte"])
    assert got.classes == 1 + max(got.y_train.max(), got.y_test.max())


def test_a_missing_mnist_file_is_named(mnist):
    folder, _ = mnist
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="no t10k-images-idx3-ubyte or"):
        data.load(folder)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("keep", [0, 3, 7, 20, -1])
def test_an_idx_file_cut_short_is_refused(tmp_path, pack, keep):
    path = tmp_path / "cut"
    path.write_bytes(pack(idx_bytes(np.ones((5, 4, 3), np.uint8))[:keep]))
    with pytest.raises(ValueError, match=r"cut (announces|ends|is not an IDX)"):
        data.read_idx(path)


def test_a_gzip_stream_cut_in_half_is_refused(tmp_path, rng):
    path = tmp_path / "cut.gz"
    packed = gzip.compress(idx_bytes(rng.integers(0, 256, (50, 4, 3), dtype=np.uint8)))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"cut\.gz is damaged"):
        data.read_idx(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_header_is_not_believed(tmp_path, pack):
    """4 EiB announced by 40 bytes: an error, and no attempt to allocate them."""
    path = tmp_path / "lie"
    path.write_bytes(pack(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 1) + bytes(24)))
    with pytest.raises(ValueError, match="announces 4,611,686,018,427,387,904 bytes but holds fewer"):
        data.read_idx(path)


def test_a_wrong_magic_number_and_trailing_bytes_are_refused(tmp_path):
    path = tmp_path / "wrong"
    path.write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(ValueError, match="starts with 89504e47, not 000008"):
        data.read_idx(path)
    path.write_bytes(idx_bytes(np.ones(3, np.uint8)) + b"x")
    with pytest.raises(ValueError, match="announces 3 bytes but holds more"):
        data.read_idx(path)


def test_counts_that_disagree_are_refused(mnist):
    folder, _ = mnist
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(11, np.uint8))))
    with pytest.raises(ValueError, match="12 rows of features but 11 targets for training"):
        data.load(folder)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_give_an_array_or_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("idx") / "any"
    path.write_bytes(content)
    try:
        assert data.read_idx(path).nbytes <= len(content)
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_its_own_split(tmp_path, rng, save):
    path = tmp_path / "d.npz"
    x, y = rng.normal(size=(7, 2, 3)), np.array([0, 1, 2, 0, 1, 2, 0])
    save(path, x_train=np.asfortranarray(x), y_train=y, x_test=x[:2], y_test=y[:2])
    got = data.load(path)
    np.testing.assert_array_equal(got.x_train, x.reshape(7, 6).astype(np.float32))
    np.testing.assert_array_equal(got.y_test, y[:2])
    assert got.classes == 3


def test_a_split_is_seeded_stratified_and_complete(tmp_path):
    path = tmp_path / "d.npz"
    x, y = np.arange(100.0)[:, None], np.repeat([0, 1, 2], [50, 30, 20])
    np.savez(path, x=x, y=y)
    got, again, other = data.load(path), data.load(path), data.load(path, seed=1)
    np.testing.assert_array_equal(np.bincount(got.y_test), [10, 6, 4])
    np.testing.assert_array_equal(np.sort(np.r_[got.x_train, got.x_test], axis=0), x)
    np.testing.assert_array_equal(got.x_test, again.x_test)
    assert not np.array_equal(got.x_test, other.x_test)
    np.testing.assert_array_equal(y[got.x_test[:, 0].astype(int)], got.y_test)


def test_an_npz_header_is_not_believed(tmp_path):
    path = tmp_path / "lie.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
        archive.writestr("y.npy", b"not numpy")
    with pytest.raises(ValueError, match=r"x in .* announces 70,368,744,177,664 bytes"):
        data.load(path)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.ones((3, 2))}, r"holds \['x'\], but must hold x, y or"),
        ({"x": np.ones((3, 2)), "y": np.zeros(4, int)}, "3 rows of features but 4 targets"),
        ({"x": np.ones((9, 2)), "y": np.full(9, 0.5)}, r"a label 0\.5, but labels must be"),
        ({"x": np.ones((9, 2)), "y": np.full(9, -1)}, "a label -1, but labels must be"),
        ({"x": np.ones((9, 2)), "y": np.full(9, 9)}, "a label 9 in 9 rows"),
        ({"x": np.ones((9, 2)), "y": np.full(9, np.nan)}, "a label nan"),
        ({"x": np.ones((9, 2)), "y": np.zeros((9, 1), int)}, r"labels of shape \(\d, 1\)"),
        ({"x": np.array([["a"]]), "y": np.zeros(1)}, "x in .* has dtype <U1"),
        ({"x": np.array([{}]), "y": np.zeros(1)}, "x in .* has dtype object"),
        ({"x": np.full((9, 2), np.nan), "y": np.zeros(9)}, "not finite in 7 of 7 rows"),
        ({"x": np.full((9, 2), 1e300), "y": np.zeros(9)}, "not finite"),
        ({"x": np.ones((0, 2)), "y": np.zeros(0)}, "holds no training data"),
        ({"x": np.ones((1, 2)), "y": np.zeros(1)}, "holds no training data"),
    ],
)
def test_bad_arrays_get_one_sentence(tmp_path, arrays, sentence):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=sentence) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_an_npz_cut_in_half_is_refused(tmp_path, rng, keep):
    path = tmp_path / "cut.npz"
    np.savez(path, x=rng.normal(size=(40, 3)), y=np.zeros(40, int))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"cut\.npz is damaged"):
        data.load(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_csv(tmp_path, delimiter, header):
    path = tmp_path / "d.csv"
    rows = [[i / 4, -i, i % 2] for i in range(20)]
    lines = [['"first one"', "b", "label"]] * header + rows
    path.write_text("\n".join(delimiter.join(map(str, line)) for line in lines))
    got = data.load(path)
    assert got.classes == 2
    table = np.c_[np.r_[got.x_train, got.x_test], np.r_[got.y_train, got.y_test]]
    np.testing.assert_array_equal(table[np.argsort(table[:, 0])], rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["", "0,1,2\n", ",0,1,2\n", "0, a ,label\n", "a,,label\n"])
def test_csv_of_spreadsheets_and_data_frames(tmp_path, encoding, header):
    path = tmp_path / "d.csv"
    rows = [[i / 4, -i, i % 2] for i in range(20)]
    rows = [[k, *row] for k, row in enumerate(rows)] if header.startswith(",") else rows
    path.write_text(header + "\n".join(",".join(map(str, row)) for row in rows), encoding=encoding)
    got = data.load(path, target="label" if "label" in header else None)
    assert (got.classes, len(got.x_train) + len(got.x_test)) == (2, 20)


def test_csv_in_another_encoding_is_no_table(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes("1,2,0\n3,\xfc,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not a table of numbers"):
        data.load(path)


def test_csv_target_by_name_and_regression(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("t,a,b\n" + "\n".join(f"{i / 8},{i},{i * i}" for i in range(10)))
    got = data.load(path, target="t", regression=True)
    assert got.classes == 0
    assert got.y_train.dtype == np.float32
    np.testing.assert_array_equal(got.y_train * 8, got.x_train[:, 0])
    with pytest.raises(ValueError, match=r"target 'z' is not a column .* its columns are t, a, b"):
        data.load(path, target="z")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "column"),
        ("a\n1\n2\n", "1 column"),
        ("a,b\n1,0\n2\n", "not a table of numbers"),
        ("a,b\n1,0\nsetosa,1\n", "not a table of numbers"),
        ("1,0\n2,\n", "not a table of numbers"),
        ("1,,0\n2,3,1\n", "not a table of numbers"),
        ("a,b\n1,\u20ac\n", "not a table of numbers"),
        ("1,0\nnan,0\n3,0\n4,0\n5,0\n6,0\n", "not finite in 1 of"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
def test_bad_csv_gets_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_digits_are_the_split_that_the_benchmarks_name():
    pytest.importorskip("sklearn")
    got = data.load("digits")
    assert got.x_train.shape == (1437, 64)
    assert got.x_test.shape == (360, 64)
    assert got.classes == 10
    assert got.x_train.min() == 0
    assert got.x_train.max() == 1
    np.testing.assert_allclose(np.bincount(got.y_test), np.bincount(got.y_train) / 4, atol=1.25)


def test_standardised_uses_the_training_data_alone(rng):
    x = rng.normal(3, 5, (40, 3)).astype(np.float32)
    x[:, 1] = 7
    y = np.zeros(40, np.int64)
    got, mean, scale = data.Dataset(x[:30], y[:30], x[30:], y[30:], "", 1).standardised()
    np.testing.assert_allclose(got.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(got.x_train.std(axis=0), [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(got.x_test * scale + mean, x[30:], rtol=1e-5)
    assert got.x_test.dtype == np.float32


def test_a_standardiser_sums_over_blocks_of_what_is_not_in_memory(rng, tmp_path, monkeypatch):
    x = (rng.normal(size=(100, 4)) * [1, 1e-3, 0, 50] + [0, 1000, 0.1, -7]).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    mapped = np.memmap(tmp_path / "x.bin", np.float32, "r", shape=x.shape)
    truth = x.astype(np.float64).mean(axis=0), np.where([0, 0, 1, 0], 1, x.astype(np.float64).std(axis=0))
    whole = fs.Standardiser().fit(x)
    monkeypatch.setattr(sources, "BLOCK", 7 * 4 * 4)
    for fitted in (whole, fs.Standardiser().fit(mapped)):
        np.testing.assert_allclose((fitted.mean, fitted.scale), truth, rtol=1e-9)
    later = whole.transform(mapped)
    assert isinstance(later, sources.Rows)
    np.testing.assert_array_equal(later[5:20].read(), whole.transform(x)[5:20])
    np.testing.assert_allclose(whole.transform(x) * truth[1] + truth[0], x, rtol=1e-6, atol=1e-6)


def test_a_standardiser_keeps_shape_and_kind(rng):
    torch = pytest.importorskip("torch")
    images = rng.integers(0, 256, (9, 1, 2, 3)).astype(np.uint8)
    standardiser = fs.Standardiser().fit(images)
    got = standardiser.transform(images)
    assert got.shape == images.shape
    assert got.dtype == np.float32
    tensor = standardiser.transform(torch.from_numpy(images))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), got)
    with pytest.raises(ValueError, match="x has 5 features; it must have 6, as what was fitted to"):
        standardiser.transform(np.ones((2, 5)))
    with pytest.raises(ValueError, match="the standardiser has not been fitted"):
        fs.Standardiser().transform(images)
    with pytest.raises(ValueError, match=r"x\[1\] holds NaN or infinity"):
        fs.Standardiser().fit([[1.0], [np.nan]])


def test_standardised_maps_are_sampled_as_arrays_are(rng, tmp_path):
    x, y = rng.normal(3, 5, (90, 3)), rng.integers(0, 2, 90)
    x.tofile(tmp_path / "x.bin")
    mapped = np.memmap(tmp_path / "x.bin", np.float64, "r", shape=x.shape)
    smc = fs.SMC(fs.Posterior(fs.MLP([3, 2])), 4, fs.FullBatch(), fs.SGHMC(batch_size=16), 3)
    standardiser = fs.Standardiser().fit(mapped)
    streamed, held = smc.run(standardiser.transform(mapped), y), smc.run(standardiser.transform(x.astype("f")), y)
    np.testing.assert_array_equal(streamed.particles, held.particles)
    assert streamed.evaluate(standardiser.transform(mapped), y) == held.evaluate(standardiser.transform(x), y)


def test_an_unknown_source_is_named():
    with pytest.raises(ValueError, match=r"data 'nowhere\.txt' is not a folder"):
        data.load("nowhere.txt")
