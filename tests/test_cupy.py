"""CuPy arrays: on a GPU themselves, elsewhere something that looks like them on the host."""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from foreign import Exchanged

import fastsmc as fs

POINTER, DEVICE = 12345, 1
STREAM = POINTER, DEVICE
RNG = np.random.default_rng(0)


class Impostor(Exchanged):
    """An array whose library has asarray, and no array namespace: as CuPy 14."""

    device = SimpleNamespace(id=DEVICE)


@pytest.fixture
def impostor(monkeypatch):
    """A module ``cupy`` whose current stream torch can be asked to work on; and what torch was asked."""
    module, asked = ModuleType("cupy"), []
    module.ndarray = module.asarray = Impostor
    module.cuda = SimpleNamespace(get_current_stream=lambda device: SimpleNamespace(ptr=POINTER * device))
    monkeypatch.setattr(Impostor, "__module__", "cupy")
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer, device: (pointer, device))

    @contextmanager
    def stream(this):
        asked.append(("enter", this))
        yield
        asked.append(("exit", this))

    monkeypatch.setattr(torch.cuda, "stream", stream)
    return asked


def test_results_are_of_the_same_kind_and_work_is_on_its_stream(impostor):
    weights = RNG.random(9)
    ancestors = fs.systematic(Impostor(weights), 0.3)
    assert isinstance(ancestors, Impostor)
    assert np.array_equal(ancestors.array, fs.systematic(weights, 0.3))
    assert impostor == [("enter", STREAM), ("exit", STREAM)]


def test_arrays_in_a_list_are_found(impostor):
    particles = RNG.random((9, 2)), RNG.random(9)
    gathered = fs.gather_particles([Impostor(p) for p in particles], Impostor(np.arange(9)[::-1].copy()))
    assert all(np.array_equal(g.array, p[::-1]) for g, p in zip(gathered, particles, strict=True))
    assert {stream for _, stream in impostor} == {STREAM}


def test_other_arrays_are_left_where_they_are(impostor):
    fs.systematic(RNG.random(9), 0.3)
    fs.systematic(torch.rand(9), 0.3)
    assert impostor == []


@pytest.fixture
def cupy():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return pytest.importorskip("cupy")


@pytest.mark.gpu
def test_cupy_arrays_are_taken_in_place_on_their_stream(cupy, unmirrored):
    log_weights = RNG.standard_normal(1000)
    with cupy.cuda.Stream(non_blocking=True):
        there = cupy.asarray(log_weights)
        for _ in range(200):  # so that work on any other stream would come too early
            there = cupy.sort(there)[::-1] + 0
        result = fs.normalize_log_weights(there, check=False)
        ancestors = fs.systematic(result.weights, 0.3, check=False)
        particles = cupy.arange(2000.0).reshape(1000, 2)
        out = cupy.zeros_like(particles)
        fs.gather_particles(particles, ancestors, out=out, check=False)
        found = [cupy.asnumpy(a) for a in (result.weights, ancestors, out)]
    assert isinstance(ancestors, cupy.ndarray)
    weights = fs.normalize_log_weights(np.sort(log_weights)[::-1].copy()).weights
    np.testing.assert_allclose(found[0], weights, rtol=1e-12)
    assert np.array_equal(found[1], fs.systematic(found[0], 0.3))
    assert np.array_equal(found[2], np.arange(2000.0).reshape(1000, 2)[found[1]])
