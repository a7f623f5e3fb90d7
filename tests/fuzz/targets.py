"""What is fuzzed: each target has seeds, a function of bytes, and how many bytes of memory a byte may cost."""

import contextlib
import gzip
import io
import json
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch  # noqa: F401  (which takes seconds that are not a run's)
from small_runs import data_of, sampler

import fastsmc as fs
from fastsmc import _cpu, checkpoint, data, files
from fastsmc.arrays import LIMIT
from fastsmc.checkpoint import RUN

warnings.simplefilter("ignore")
HUGE = (0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))


class Reader:
    """A function that reads a file."""

    suffix = ""
    sentences = True
    growth = 64

    def __init__(self):
        self._path = Path(tempfile.mkdtemp()) / f"input{self.suffix}"

    def run(self, content):
        self._path.write_bytes(content)
        self.read(self._path)


class Idx(Reader):
    name = "idx"
    growth = 4 * data.DEFLATE_LIMIT

    def __init__(self):
        super().__init__()
        plain = [
            struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(range(np.prod(shape)))
            for shape in ((12,), (3, 4), (2, 3, 4))
        ]
        self.seeds = [*plain, *map(gzip.compress, plain)]

    def read(self, path):
        found = data.read_idx(path)
        assert found.dtype == np.uint8


class Csv(Reader):
    name, suffix = "csv", ".csv"
    growth = 1024

    seeds = (
        b"1,2,0\n3,4,1\n5,6,0\n7,8,1\n9,1,0\n2,3,1\n4,4,0\n",
        b"a;b;c\n1;2;0\n3;4;1\n5;6;0\n7;8;1\n9;1;0\n2;3;1\n",
        b'"x"\t"y"\n1e3\t0\nnan\t1\n-inf\t0\n"4"\t1\n5\t1\n6\t0\n',
    )

    def read(self, path):
        for regression in (False, True):
            found = data.load(path, regression=regression)
            assert np.isfinite(found.x_train).all()


class Npz(Reader):
    name, suffix = "npz", ".npz"
    growth = 16 * data.DEFLATE_LIMIT

    def __init__(self):
        super().__init__()
        x, y = np.arange(40, dtype=np.float32).reshape(10, 4), np.arange(10) % 3
        self._members = {name: self._npy(array) for name, array in (("x", x), ("y", y))}
        archives = []
        for save in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            save(file, x=x, y=y)
            archives.append(file.getvalue())
        headers = [self._npy(a) for a in (x, np.asfortranarray(x), y[:, None], x.astype(">f2"), np.ones(10, "M8[s]"))]
        self.seeds = [*archives, *(b"npy" + header for header in headers)]

    @staticmethod
    def _npy(array):
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    def run(self, content):
        if content.startswith(b"npy"):  # an archive that is whole, with a member that may not be
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for name, member in (self._members | {"x": content[3:]}).items():
                    archive.writestr(f"{name}.npy", member)
            content = file.getvalue()
        super().run(content)

    def read(self, path):
        found = data.load(path)
        assert np.isfinite(found.x_train).all()


class Results(Reader):
    """Files that are damaged, and such as are forged: whole, with the right checksum."""

    name, suffix = "results", ".safetensors"
    growth = 256

    def __init__(self):
        super().__init__()
        result = sampler(num_iterations=3).run(*data_of(), progress=False)
        result.predict_proba(data_of()[0])  # what is imported for it is
        whole = files.encoded(result)
        size = int.from_bytes(whole[:8], "little")
        self._description = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"]["fastsmc"])
        self._path.write_bytes(whole)
        from safetensors.numpy import load_file

        self._tensors = load_file(self._path)
        self.seeds = [whole, *(b"forge" + bytes([k] * 12) for k in range(8))]

    def run(self, content):
        if content.startswith(b"forge"):
            content = self._forged(np.random.default_rng(list(content[5:])))
        super().run(content)

    def _forged(self, rng):
        from safetensors.numpy import save

        description, tensors = json.loads(json.dumps(self._description)), dict(self._tensors)
        for _ in range(rng.integers(1, 4)):
            if rng.random() < 0.7:
                change_leaf(rng, description)
            else:
                name = rng.choice(list(tensors))
                tensors[name] = changed(rng, tensors[name])
        text = json.dumps(description)
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        return save(tensors, {"fastsmc": text, "sha256": files._digest(text, tensors)})

    def read(self, path):
        found = fs.load(path)
        if np.isfinite(found.particles).all() and found.posterior.network.num_inputs == 2:
            with contextlib.suppress(ValueError):
                assert len(found.predict_proba(data_of()[0])) == 40


class Runs:
    """The description of a run in its folder, damaged, or forged with the right checksum; the run does not go on."""

    name, sentences = "runs", True
    growth = 256

    def __init__(self):
        x, y = data_of()
        self._folders = []
        for mapped in (False, True):
            folder = Path(tempfile.mkdtemp())
            if mapped:
                np.save(folder / "x.npy", x)
                x = np.load(folder / "x.npy", mmap_mode="r")
            sampler(num_iterations=3).run(x, y, False, folder / "run", weights=np.ones(len(x)))
            held = json.loads((folder / "run" / RUN).read_bytes())
            self._open(folder / "run")  # what is imported for it is
            self._folders.append((folder / "run", held))
        whole = [json.dumps(held).encode() for _, held in self._folders]
        self.seeds = [*whole, *(b"forge" + bytes([k] * 12) for k in range(8))]

    def run(self, content):
        folder, held = self._folders[content[-1] % 2 if content else 0]
        if content.startswith(b"forge"):
            rng, held = np.random.default_rng(list(content[5:])), json.loads(json.dumps(held))
            del held["sha256"]
            for _ in range(rng.integers(1, 4)):
                change_leaf(rng, held)
            content = json.dumps({**held, "sha256": checkpoint._digest(held)}).encode()
        (folder / RUN).write_bytes(content)
        self._open(folder)

    @staticmethod
    def _open(folder):
        given = dict.fromkeys(files.PARTS)
        _, (x, y, weights), state = checkpoint.opened(folder, None, None, None, None, given, False)
        assert state is not None and len(x) == len(y) == len(weights)


def change_leaf(rng, tree):
    """Replace something in a tree of JSON by something else, or leave it out."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if not isinstance(tree[key], dict | list) or rng.random() < 0.15:
            break
        tree = tree[key]
    values = [
        None,
        True,
        "",
        "nan",
        "MLP",
        "Normal",
        "../x",
        [],
        {},
        0,
        -1,
        1e308,
        2**31,
        2**63,
        64,
        [1, 2],
        {"kind": "x"},
    ]
    values += [{"kind": kind} for kind in files.KINDS]
    if rng.random() < 0.2 and isinstance(tree, dict):
        del tree[key]
    else:
        tree[key] = values[rng.integers(len(values))]


def changed(rng, array):
    """Another array than is meant: of another type, shape or layout, with other numbers, of no size, or huge."""
    kinds = {
        "type": lambda: array.astype(rng.choice(["f4", "f8", "i8", "i4", "u1", "?", "f2"])),
        "longer": lambda: np.resize(array, [int(n) + int(rng.integers(0, 3)) for n in array.shape]),
        "shorter": lambda: np.resize(array, [max(0, int(n) - int(rng.integers(0, 3))) for n in array.shape]),
        "dimension": lambda: array[None],
        "flat": lambda: array.reshape(-1),
        "scalar": lambda: array.reshape(-1)[:1].reshape(()),
        "empty": lambda: array[..., :0] if array.ndim else array,
        "numbers": lambda: (
            np.where(rng.random(array.shape) < 0.2, rng.choice([np.nan, np.inf, -np.inf, 1e300]), array)
            if array.dtype.kind == "f"
            else np.where(
                rng.random(array.shape) < 0.2, np.array(HUGE)[rng.integers(len(HUGE))], array.astype(np.int64)
            )
        ),
    }
    with np.errstate(all="ignore"):
        return kinds[rng.choice(list(kinds))]()


def misplaced(rng, array):
    """The same numbers where the engine does not expect them, or none at all."""
    kinds = {
        "swapped": lambda: array.astype(array.dtype.newbyteorder()),
        "unaligned": lambda: np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape),
        "strided": lambda: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
        "backwards": lambda: array[::-1] if array.ndim else array,
        "fortran": lambda: np.asfortranarray(array),
        "huge": lambda: np.broadcast_to(array.reshape(-1)[:1], [*array.shape[:-1], 2**40]) if array.size else array,
        "tall": lambda: (
            np.lib.stride_tricks.as_strided(array, [2**40, *array.shape[1:]], [0, *array.strides[1:]])
            if array.ndim
            else array
        ),
        "fixed": lambda: fixed(array),
        "none": lambda: None,
        "list": lambda: array.tolist(),
        "objects": lambda: array.astype(object),
        "fields": lambda: np.zeros(array.shape, [("a", object), ("b", array.dtype)]),
        "number": lambda: int(rng.choice(np.array(HUGE[:4]))),
    }
    return kinds[rng.choice(list(kinds))]()


def fixed(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Engine:
    """The functions of the extension module, with arguments of which some are wrong."""

    name, sentences = "engine", False  # those of arguments of wrong types are pybind11's
    growth = 1 << 14
    seeds = tuple(bytes([k] * 8) for k in range(64))

    def run(self, content):
        rng = np.random.default_rng(list(content))
        name, arguments = self._call(rng)
        for _ in range(rng.integers(0, 3)):
            k = rng.integers(len(arguments))
            if isinstance(arguments[k], np.ndarray):
                if arguments[k].size > 1 << 20 or arguments[k].dtype.kind not in "fiu":
                    continue  # it is wrong already
                table = arguments[k].ndim == 2 and arguments[k].shape[1:] == (9,)
                change = self._table if table and rng.random() < 0.8 else rng.choice([changed, misplaced])
                arguments[k] = change(rng, arguments[k])
            elif isinstance(arguments[k], int) and name not in ("trajectory", "multiply_adds"):
                arguments[k] = HUGE[rng.integers(len(HUGE))]
            elif isinstance(arguments[k], float):
                arguments[k] = float(rng.choice([np.nan, np.inf, 0.0, -1.0, 1e308]))
        getattr(_cpu, name)(*arguments)

    @staticmethod
    def _table(rng, layers):
        layers = layers.copy()
        for _ in range(rng.integers(1, 3)):
            layers[rng.integers(len(layers)), rng.integers(9)] = rng.choice([*map(int, HUGE), 2, 3, 5, 17, 64, 1000])
        return np.concatenate([layers] * int(rng.choice([1, 1, 1, 2, 40])))

    @staticmethod
    def _call(rng):
        """A function with arguments that fit."""
        P, B, n, m = (int(rng.integers(1, most)) for most in (5, 90, 3000, 40))
        net = rng.choice([fs.MLP([3, 5, 2]), fs.MLP([4, 3, 3, 2], "tanh"), fs.LeNet5(1, 3, image_size=12)])
        d, K, inputs, layers = net.num_params, net.num_outputs, net.num_inputs, net.layer_table.copy()
        floats = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
        code, precision = int(rng.integers(4)), int(rng.integers(3))
        y = rng.integers(0, K, B) if code == 0 else floats(B, K)
        weights = None if rng.random() < 0.5 else np.ones(B, np.float32)
        batch = [floats(P, d) * np.float32(0.1), floats(B, inputs), y, weights]
        dtype = rng.choice([np.float32, np.float64])
        scheme = str(rng.choice(_cpu.schemes()))
        w, u = rng.random(n).astype(dtype), rng.random(() if scheme == "systematic" else m)
        key = [1, 2, 3, 4]
        one = lambda: np.empty((), dtype)  # noqa: E731
        calls = {
            "log_likelihood": lambda: [layers, code, 0.5, precision, *batch, np.empty(P), floats(P, d)],
            "network_outputs": lambda: [layers, precision, batch[0], batch[1], np.empty((P, B, K), np.float32)],
            "trajectory": lambda: [
                *(layers, code, 0.5, precision, batch[0], floats(P, d), floats(P, d), *batch[1:]),
                *(np.ones(d, np.float32), None if rng.random() < 0.5 else np.ones(d, np.float32)),
                *(np.empty(P), np.empty((P, 3)), np.empty((P, 3)), 0.01, 2, 1.0, True, 0.0, *key),
            ],
            "precision_in_use": lambda: [layers, precision],
            "leapfrog": lambda: [
                *(floats(P, d), floats(P, d), floats(P, d), np.ones(d, np.float32), None, np.ones(d, np.float32)),
                *(floats(P, d), np.empty((P, 3)), 0.1, 0.1, 1.0, True, 0.5, *key),
            ],
            "philox": lambda: [np.empty((P, n), np.uint32), *key],
            "uniform": lambda: [np.empty((P, n)), *key],
            "normal": lambda: [np.empty((P, n), np.float32), *key],
            "normalize_log_weights": lambda: [np.log(w), np.empty_like(w), one(), one()],
            "resample": lambda: [scheme, False, w, u, np.empty(m, np.int64)],
            "adaptive_resample": lambda: [
                *(scheme, 0.5, np.log(w) * 9, rng.random(() if scheme == "systematic" else n)),
                *(np.empty(n, np.int64), np.empty(n, np.int64), np.empty_like(w), one(), one()),
            ],
            "offspring": lambda: [rng.integers(0, n, m), np.empty(n, np.int64)],
            "permute_ancestors": lambda: [rng.integers(0, n, n), np.empty(n, np.int64)],
            "gather_particles": lambda: [floats(n, 3), rng.integers(0, n, m), floats(m, 3)],
        }
        name = str(rng.choice(list(calls)))
        return name, calls[name]()


class Ops:
    """The public ops on the engine: what the reference refuses they refuse, and where it answers they say the same."""

    name, sentences = "ops", True
    growth = 1 << 14
    seeds = tuple(bytes([k] * 8) for k in range(64))

    def run(self, content):
        rng = np.random.default_rng(list(content))
        weights, log = self._weights(rng)
        scheme, m = str(rng.choice(list(fs.ops.SCHEMES))), int(rng.choice([1, 2, 7, 100, len(weights)]))
        u = rng.choice([0.0, 1 - 2**-53, 2**-53, 0.5, *rng.random(4)], () if scheme == "systematic" else m)
        if rng.random() < 0.1:
            u = np.where(rng.random(u.shape) < 0.1, rng.choice([1.0, np.nan, -1.0, np.inf]), u)
        call = fs.resample if log else getattr(fs, scheme)
        options = {"scheme": scheme} if log else {}
        number = rng.choice(np.array([None, m, *HUGE[:3], *HUGE[4:]], object), p=[0.1, 0.82, *[0.01] * 8])
        self._same(lambda b: call(weights, u, num_samples=number, backend=b, **options))
        if log:
            self._same(lambda b: fs.normalize_log_weights(weights, backend=b).ess)
        a = rng.integers(-1 if rng.random() < 0.1 else 0, len(weights), len(weights))
        self._same(lambda b: fs.permute_ancestors(a, backend=b))
        self._same(lambda b: fs.offspring(a, len(weights), backend=b))

    @staticmethod
    def _weights(rng):
        n, dtype = int(rng.choice([1, 2, 7, 8, 9, 100, 2049, 5000])), rng.choice([np.float32, np.float64])
        log = rng.random() < 0.5
        weights = rng.choice([rng.random(n), rng.random(n) ** 40, np.ones(n), rng.exponential(size=n) * 1e30])
        with np.errstate(all="ignore"):
            weights = (np.log(weights) if log else weights).astype(dtype)
        weights[rng.random(n) < rng.choice([0, 0.5, 0.99])] = -np.inf if log else 0.0
        if rng.random() < 0.2:
            weights[rng.integers(n)] = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e-45, 3e38])
        return weights, log

    @staticmethod
    def _same(call):
        def answer(backend):
            try:
                return call(backend)
            except (ValueError, TypeError) as error:
                return type(error), str(error)

        reference, ours = answer("reference"), answer("cpu")
        refused = isinstance(reference, tuple) or isinstance(ours, tuple)
        assert reference == ours if refused else np.allclose(reference, ours, rtol=1e-6), (reference, ours)


TARGETS = {target.name: target for target in (Idx, Csv, Npz, Results, Runs, Engine, Ops)}
assert LIMIT == 2**31
