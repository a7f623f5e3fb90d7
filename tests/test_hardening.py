"""What the shipped engine is compiled with, read in its file; and sizes that no memory has, from outside."""

import platform
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastsmc as fs
from fastsmc import _cpu, ops, random

PT_GNU_STACK, PT_GNU_RELRO, PT_DYNAMIC = 0x6474E551, 0x6474E552, 2
EXECUTABLE = 1
DT_FLAGS, DT_FLAGS_1 = 30, 0x6FFFFFFB
BIND_NOW, NOW = 8, 1


class Elf:
    """The segments and flags of a 64-bit little-endian shared object."""

    def __init__(self, path):
        self.content = Path(path).read_bytes()
        assert self.content[:6] == b"\x7fELF\x02\x01"
        begin, size, count = (
            struct.unpack_from("<Q", self.content, 32)[0],
            *struct.unpack_from("<HH", self.content, 54),
        )
        headers = [struct.unpack_from("<IIQQQQQQ", self.content, begin + k * size) for k in range(count)]
        self.flags = {kind: flags for kind, flags, *_ in headers}
        place, length = next((h[2], h[5]) for h in headers if h[0] == PT_DYNAMIC)
        self.dynamic = dict(struct.iter_unpack("<QQ", self.content[place : place + length]))


@pytest.fixture(scope="module", params=["_cpu", "_cuda", "_jax"])
def elf(request):
    if not sys.platform.startswith("linux"):
        pytest.skip("ELF is the format of Linux")
    module = pytest.importorskip(f"fastsmc.{request.param}")
    found = Elf(module.__file__)
    if any(f"lib{sanitizer}san.so".encode() in found.content for sanitizer in ("a", "ub", "t")):
        pytest.skip("a sanitizer takes the place of these checks")
    return found


def test_relocations_are_read_only_and_the_stack_holds_no_code(elf):
    assert PT_GNU_RELRO in elf.flags
    assert elf.dynamic.get(DT_FLAGS, 0) & BIND_NOW or elf.dynamic.get(DT_FLAGS_1, 0) & NOW
    assert not elf.flags[PT_GNU_STACK] & EXECUTABLE


def test_returns_are_guarded_by_canaries(elf):
    assert b"__stack_chk_fail" in elf.content


ENDBR64 = b"\xf3\x0f\x1e\xfa"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the marks are x86's")
def test_jumps_land_on_marks(elf):
    marks = elf.content.count(ENDBR64)
    assert marks > 100, f"{marks} marks: some are in any file, but -fcf-protection puts one at each function"


NET = fs.MLP([3, 4, 2])
THETA = np.zeros((2, NET.num_params), np.float32)
HUGE = 2**40


def tall(array, rows=HUGE):
    """An array of so many equal rows, in the memory of one."""
    return as_strided(array, (rows, *array.shape[1:]), (0, *array.strides[1:]))


def layers(**fields):
    """The table of a network, with some fields of its first layer replaced."""
    first, *others = NET.layers
    return np.array([first._replace(**fields), *others], np.int64)


WRONG_TABLES = {
    "unknown kind": layers(kind=2),
    "negative kind": layers(kind=-1),
    "unknown activation": layers(activation=5),
    "no filters": layers(out_channels=0),
    "negative size": layers(in_channels=-3),
    "size beyond 31 bits": layers(in_channels=2**62),
    "a product beyond 63 bits": layers(in_channels=2**31, in_height=2**31, in_width=2**31, out_channels=2**31),
    "pool of zero": layers(pool=0),
    "widths that do not meet": layers(out_channels=5),
    "an image of 2^62": layers(kind=1, in_height=2**31, in_width=2**31),
    "a filter larger than its image": layers(kind=1, kernel=9),
    "padding beyond 31 bits": layers(kind=1, padding=2**62),
    "65 layers": np.repeat(np.array(fs.MLP([2, 2]).layers, np.int64), 65, axis=0),
    "none": np.empty((0, 9), np.int64),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_wrong_tables_of_layers_are_refused_by_the_engine(name):
    x, y, value = np.zeros((5, 3), np.float32), np.zeros(5, int), np.empty(2)
    for call in (
        lambda table: _cpu.precision_in_use(table, 0),
        lambda table: _cpu.log_likelihood(table, 0, 1.0, 0, THETA, x, y, None, value, None),
        lambda table: _cpu.network_outputs(table, 0, THETA, x, np.empty((2, 5, 2), np.float32)),
    ):
        with pytest.raises((ValueError, TypeError)):
            call(WRONG_TABLES[name])


def test_codes_beyond_the_tables_are_refused_by_the_engine():
    x, y, value = np.zeros((5, 3), np.float32), np.zeros(5, int), np.empty(2)
    for likelihood, precision in ((4, 0), (-1, 0), (0, 3), (0, -1)):
        with pytest.raises(ValueError, match="unknown"):
            _cpu.log_likelihood(NET.layer_table, likelihood, 1.0, precision, THETA, x, y, None, value, None)


def evaluate(theta=THETA, x=None, y=None, weights=None, value=None, grad=None):
    """The engine's own function, with arrays that fit but for those that are given."""
    x = np.zeros((5, 3), np.float32) if x is None else x
    y = np.zeros(5, np.int64) if y is None else y
    value = np.empty(2) if value is None else value
    return _cpu.log_likelihood(NET.layer_table, 0, 1.0, 0, theta, x, y, weights, value, grad)


MISSHAPEN = {
    "particles": {"theta": THETA[:, 1:].copy()},
    "no particles": {"theta": THETA[:0], "value": np.empty(0)},
    "x": {"x": np.zeros((5, 2), np.float32)},
    "x of one dimension": {"x": np.zeros(15, np.float32)},
    "no rows": {"x": np.zeros((0, 3), np.float32), "y": np.zeros(0, np.int64)},
    "rows without memory": {"x": tall(np.zeros((1, 3), np.float32))},
    "x off its alignment": {"x": np.zeros(61, np.uint8)[1:].view(np.float32).reshape(5, 3)},
    "y": {"y": np.zeros(4, np.int64)},
    "y of another type": {"y": np.zeros(5, np.int32)},
    "no y": {"y": [0] * 5},
    "weights": {"weights": np.ones(4, np.float32)},
    "weights of another type": {"weights": np.ones(5)},
    "values": {"value": np.empty(1)},
    "a gradient of another type": {"grad": THETA.astype(np.float64)},
    "a gradient of another size": {"grad": THETA[:1].copy()},
}


@pytest.mark.parametrize("name", MISSHAPEN)
def test_arrays_that_do_not_fit_are_refused_by_the_engine(name):
    assert evaluate(grad=np.empty_like(THETA)) is None
    with pytest.raises(TypeError):
        evaluate(**MISSHAPEN[name])


ROW = np.zeros((1, 3), np.float32)
BEYOND_MEMORY = {
    "outputs": lambda: ops.network_outputs(NET, THETA, tall(ROW, 2**45)),
    "a density": lambda: ops.log_likelihood(NET, fs.Categorical(), THETA, tall(ROW, 2**45), tall(np.zeros(1, int))),
    "particles": lambda: ops.log_likelihood(
        NET, fs.Categorical(), tall(THETA, 2**45), np.zeros((5, 3)), np.zeros(5, int)
    ),
    "a row of weights": lambda: fs.systematic(np.broadcast_to(1.0, 2**45), 0.5),
    "rows of weights": lambda: fs.systematic(np.broadcast_to(1.0, (2**45, 4)), np.broadcast_to(0.5, 2**45)),
    "ancestors": lambda: fs.offspring(np.broadcast_to(0, (2**45, 2)), 3),
    "gathered rows": lambda: fs.gather_particles(np.broadcast_to(np.float32(1), (3, 2**45)), [0, 1, 2]),
    "random numbers": lambda: random.normal((2**31, 2**31), seed=0),
    "a negative number of them": lambda: random.uniform((-1, 4), seed=0),
}


@pytest.mark.parametrize("name", BEYOND_MEMORY)
def test_sizes_beyond_memory_are_refused_before_anything_is_computed(name):
    with pytest.raises((ValueError, MemoryError)):
        BEYOND_MEMORY[name]()


def test_empty_arrays_of_random_numbers_take_no_time():
    for shape in ((2**60, 0), (0, 5)):
        assert random.philox(shape, seed=0).shape == shape


def test_what_the_engine_writes_overlaps_nothing():
    lw, u = np.zeros(8), np.array(0.5)
    a, counts, out, log_sum, ess = np.zeros(8, np.int64), np.empty(8, np.int64), np.empty(8), np.empty(()), np.empty(())
    for call in (
        lambda: _cpu.adaptive_resample("systematic", 0.5, lw, u, a, a, out, log_sum, ess),
        lambda: _cpu.adaptive_resample("systematic", 0.5, lw, u, a, counts, out, ess, ess),
        lambda: _cpu.normalize_log_weights(lw, out, out[:1], ess),
        lambda: _cpu.resample("systematic", False, lw, u, lw.view(np.int64)),
        lambda: _cpu.offspring(a, a),
        lambda: _cpu.permute_ancestors(a, a),
        lambda: _cpu.gather_particles(out, a, a),
    ):
        with pytest.raises(TypeError, match="the engine takes outputs that overlap no other array"):
            call()


def test_what_holds_objects_is_not_gathered():
    fields = np.zeros(3, [("a", object), ("b", float)])
    with pytest.raises(TypeError):
        _cpu.gather_particles(fields, np.zeros(3, np.int64), fields.copy())
    with pytest.raises(TypeError):
        fs.gather_particles(fields, [0, 0, 0])
